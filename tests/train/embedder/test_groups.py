from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from torch import nn

from tk.train.embedder.arcface import ArcFace
from tk.train.embedder.groups import parameter_groups
from tk.train.embedder.model import EmbedNet
from tk.train.run.task import decay_groups

FAMILIES = [
    # model, canvas, a parameter of the stem, one of the first block, one of the last
    ("test_vit", 32, "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.5.norm1.bias"),
    ("vit_tiny_patch16_dinov3_qkvb", 32, "reg_token", "blocks.0.gamma_1", "blocks.11.gamma_2"),
    ("test_resnet", 32, "conv1.0.weight", "layer1.0.conv1.weight", "layer4.0.conv2.weight"),
    ("test_convnext", 32, "stem.0.weight", "stages.0.blocks.0.gamma", "stages.3.blocks.1.gamma"),
    ("mobilenetv4_conv_small", 32, "conv_stem.weight", "blocks.0.0.bn1.bias", "conv_head.weight"),
    ("test_efficientnet", 32, "conv_stem.weight", "blocks.0.0.bn1.bias", "blocks.4.0.bn1.bias"),
    ("swin_tiny_patch4_window7_224", 224, "patch_embed.proj.weight",
     "layers.0.blocks.0.attn.qkv.weight", "layers.3.blocks.1.attn.relative_position_bias_table"),
]  # fmt: skip


def groups_of(net: EmbedNet, layer_decay: float) -> tuple[list[dict[str, Any]], nn.Module]:
    margin = ArcFace(8, 4)
    groups = parameter_groups(
        net, margin, lr_scale=0.2, weight_decay=0.05, head_decay=1e-4, layer_decay=layer_decay
    )
    return groups, margin


@pytest.mark.parametrize(("model_id", "size", "stem", "first", "last"), FAMILIES)
def test_parameter_groups__a_layer_learns_slower_than_the_next(
    model_id: str, size: int, stem: str, first: str, last: str
) -> None:
    net = EmbedNet(model_id, 8, size)
    groups, margin = groups_of(net, 0.5)
    found = [p for group in groups for p in group["params"]]
    assert len(found) == len({id(p) for p in found})
    assert {id(p) for p in found} == {id(p) for p in (*net.parameters(), *margin.parameters())}

    of = {id(p): group for group in groups for p in group["params"]}
    backbone = dict(net.backbone.named_parameters())
    scale = {name: of[id(p)]["lr_scale"] for name, p in backbone.items()}
    assert scale[stem] == min(scale.values()) < scale[first] < scale[last]
    assert max(scale.values()) == pytest.approx(0.2)
    steps = sorted({round(math.log(value / 0.2, 0.5), 6) for value in scale.values()})
    assert steps == list(range(len(steps)))  # no layer is left out
    plain = set(net.backbone.no_weight_decay()) if hasattr(net.backbone, "no_weight_decay") else ()
    for name, parameter in backbone.items():
        expected = 0.0 if parameter.ndim <= 1 or name in plain else 0.05
        assert of[id(parameter)]["weight_decay"] == expected, name
    for parameter in (*net.head.parameters(), *margin.parameters()):
        group = of[id(parameter)]
        assert group["lr_scale"] == 1.0
        assert group["weight_decay"] == (1e-4 if parameter.ndim > 1 else 0.0)


def test_parameter_groups__swin_tables_and_tokens_do_not_decay() -> None:
    for model_id, size, name in (
        ("test_vit", 32, "pos_embed"),
        ("test_vit", 32, "cls_token"),
        (
            "swin_tiny_patch4_window7_224",
            224,
            "layers.0.blocks.0.attn.relative_position_bias_table",
        ),
    ):
        net = EmbedNet(model_id, 8, size)
        parameter = net.backbone.get_parameter(name)
        group = next(g for g in groups_of(net, 1.0)[0] if any(p is parameter for p in g["params"]))
        assert parameter.ndim > 1 and group["weight_decay"] == 0.0


def test_parameter_groups__without_layer_decay_as_before() -> None:
    net = EmbedNet("test_resnet", 8, 32)
    found, margin = groups_of(net, 1.0)
    head = nn.ModuleList([net.head, margin])
    expected = decay_groups(net.backbone, 0.05, 0.2) + decay_groups(head, 1e-4)
    for group, before in itertools.zip_longest(found, expected):
        assert {id(p) for p in group["params"]} == {id(p) for p in before["params"]}
        assert (group["weight_decay"], group["lr_scale"]) == (
            before["weight_decay"],
            before["lr_scale"],
        )


def test_parameter_groups__frozen_parameters_are_in_none() -> None:
    net = EmbedNet("test_resnet", 8, 32)
    net.backbone.requires_grad_(False)
    net.backbone.layer4.requires_grad_(True)
    groups, margin = groups_of(net, 0.75)
    found = {id(p) for group in groups for p in group["params"]}
    expected = (*net.backbone.layer4.parameters(), *net.head.parameters(), *margin.parameters())
    assert found == {id(p) for p in expected}
    net.backbone.requires_grad_(False)
    assert {g["lr_scale"] for g in groups_of(net, 0.75)[0]} == {1.0}
