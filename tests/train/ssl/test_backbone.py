"""Transformers as pre-training sees them: masks, packing, freezing, groups, files, attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests.train.ssl.runs import config, write_digits
from torch import Tensor

from tk.runtime.errors import TkError
from tk.train.ssl.attention import class_attention
from tk.train.ssl.backbone.base import Backbone, forward_crops, freeze_blocks
from tk.train.ssl.backbone.export import build, export_backbone, load_dinov2_backbone
from tk.train.ssl.backbone.groups import parameter_groups
from tk.train.ssl.backbone.timm import make_timm
from tk.train.ssl.backbone.vit import make_vit
from tk.train.ssl.heads import ProjectionHead
from tk.train.ssl.start import make_student, shape_of
from tk.train.ssl.train import train_ssl

NAMES = ["own", "test_vit", "vit_tiny_patch16_dinov3_qkvb"]


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    made = make_vit(32, 8, 16, 3, 2) if name == "own" else make_timm(name, 32)
    with torch.no_grad():
        made.mask_token.normal_()
    return made.eval()


@pytest.mark.parametrize("name", NAMES)
def test_backbone__masked_patches_are_not_seen(name: str) -> None:
    made = backbone(name)
    side = 32 // made.patch_size
    images = torch.randn(2, 3, 32, 32)
    masks = torch.zeros(2, side * side, dtype=torch.bool)
    plain = made(images)
    assert torch.allclose(plain.cls, made.vit.forward_features(images)[:, 0])
    assert plain.patches.shape == (2, side * side, made.width)
    assert torch.equal(made(images, masks).patches, plain.patches)
    masks[0, 0] = True
    changed = images.clone()
    changed[0, :, : made.patch_size, : made.patch_size] += 5
    hidden, same = made(images, masks), made(changed, masks)
    assert torch.equal(hidden.cls, same.cls) and torch.equal(hidden.patches, same.patches)
    assert not torch.allclose(hidden.patches[0, 0], plain.patches[0, 0], atol=1e-3)
    assert torch.allclose(hidden.cls[1], plain.cls[1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_forward_crops__packed_equals_one_by_one(name: str) -> None:
    made = backbone(name)
    half = 2 * made.patch_size
    crops = [torch.randn(2, 3, side, side) for side in (32, half, 32, half)]
    mask = torch.rand(2, (32 // made.patch_size) ** 2) < 0.4
    masks = [mask, None, None, None]
    found = forward_crops(made, crops, masks)
    for crop, own, features in zip(crops, masks, found, strict=True):
        alone = made(crop, own)
        assert torch.allclose(features.cls, alone.cls, atol=1e-5)
        assert torch.allclose(features.patches, alone.patches, atol=1e-5)


def test_freeze_blocks__by_number_not_by_name() -> None:
    made = make_vit(32, 8, 16, 12, 2)
    freeze_blocks(made, 2)
    trained = {
        name.split(".")[1] for name, p in made.vit.blocks.named_parameters("b") if p.requires_grad
    }
    assert trained == {str(number) for number in range(2, 12)}  # 10 and 11 among them
    assert (
        not made.vit.pos_embed.requires_grad and not made.vit.patch_embed.proj.weight.requires_grad
    )
    assert made.vit.norm.weight.requires_grad
    with pytest.raises(TkError, match="at most 12"):
        freeze_blocks(made, 13)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups__each_once(name: str) -> None:
    made, head = backbone(name), ProjectionHead(backbone(name).width, 8, hidden_dim=8)
    groups = parameter_groups(made, [head], 0.1, layer_decay=0.5)
    listed = [id(p) for group in groups for p in group["params"]]
    wanted = [id(p) for m in (made, head) for p in m.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(wanted)
    for group in groups:
        if group["weight_decay"]:
            assert all(p.ndim > 1 for p in group["params"])
    last = [p for group in groups if group["last_layer"] for p in group["params"]]
    assert [id(p) for p in last] == [id(p) for p in head.last_layer.parameters() if p.requires_grad]
    assert len({group["lr_scale"] for group in groups}) > 2


@pytest.mark.parametrize("name", NAMES)
def test_class_attention__is_that_of_the_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shares are those by which the last attention joins the values, seen from outside.

    The values of one patch at a time are raised by 1 in every channel: what the class token gets
    grows by the share of that patch, whatever the queries, keys and rotations are.
    """
    made = backbone(name)
    images = torch.randn(2, 3, 32, 32)
    attention = made.vit.blocks[-1].attn
    attention.fused_attn = True
    shares = class_attention(made, images)
    side = 32 // made.patch_size
    assert shares.shape == (2, attention.num_heads, side, side)
    assert bool((shares >= 0).all()) and float(shares.sum(dim=(2, 3)).max()) < 1.0
    product, prefix = torch.nn.functional.scaled_dot_product_attention, made.vit.num_prefix_tokens
    grown: list[Tensor] = []

    def raised(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        other = v.clone()
        other[:, :, prefix + patch] += 1.0
        plain: Tensor = product(q, k, v, **more)
        grown.append((product(q, k, other, **more) - plain)[:, :, 0])
        return plain

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", raised)
    for patch in (0, side * side - 1):
        made(images)
        expected = shares.flatten(2)[:, :, patch, None].expand_as(grown[-1])
        assert torch.allclose(grown[-1], expected, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    digits = write_digits(root / "digits", 32)
    path = root / "a:b" / "backbone.pt"
    train_ssl(
        config(
            digits, root / "run", epochs=1, export_backbone=path, stream="face", algorithm="ibot"
        )
    )
    return path


def test_export__round_trip_through_the_specification(exported: Path) -> None:
    loaded = load_dinov2_backbone(f"file::{exported}:slt_vitsmall_patch16")
    content = torch.load(exported, weights_only=True)
    assert content["metadata"]["stream"] == "face"
    assert content["metadata"]["backbone"]["embed_dim"] == 16
    assert (
        json.loads(exported.with_suffix(".pt.json").read_text())["name"] == "slt_vitsmall_patch16"
    )
    state = loaded.state_dict()
    assert state.keys() == content["model"].keys()
    assert all(torch.equal(state[name], value) for name, value in content["model"].items())
    run = exported.parents[1] / "run" / "checkpoint_best.pt"
    teacher = torch.load(run, weights_only=True)["model"]
    assert all(torch.equal(teacher[f"vit.{name}"], value) for name, value in state.items())
    assert loaded(torch.randn(1, 3, 16, 16)).shape == (1, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("file::nowhere.pt:slt_vitsmall_patch16", "there is no backbone file"),
        ("file::x.pt:dinov2_vits14", "no specification"),
        ("hf::x:slt_vitsmall_patch16", "no specification"),
        ("slt_vitsmall_patch16", "no specification"),
    ],
)
def test_load_dinov2_backbone__other_specifications(spec: str, message: str) -> None:
    with pytest.raises(TkError, match=message):
        load_dinov2_backbone(spec)


def test_load_dinov2_backbone__damaged_and_foreign_files(exported: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(exported.read_bytes()[:500])
    with pytest.raises(TkError, match="cannot be read as a backbone"):
        load_dinov2_backbone(f"file::{bad}:slt_vitsmall_patch16")
    torch.save({"model": {}}, bad)
    with pytest.raises(TkError, match="not a file of --export-backbone"):
        load_dinov2_backbone(f"file::{bad}:slt_vitsmall_patch16")
    content = torch.load(exported, weights_only=True)
    del content["model"]["cls_token"]
    torch.save(content, bad)
    with pytest.raises(TkError, match="do not fit their own metadata"):
        load_dinov2_backbone(f"file::{bad}:slt_vitsmall_patch16")


def test_start__continues_from_an_exported_backbone(exported: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tmp_path / "run", weights=exported)
    state = make_student(settings).backbone.vit.state_dict()
    content = torch.load(exported, weights_only=True)["model"]
    assert all(torch.equal(state[name], value) for name, value in content.items())
    run = exported.parents[1] / "run" / "checkpoint_best.pt"
    again = make_student(config(tmp_path, tmp_path / "run", weights=run)).backbone.vit
    assert all(torch.equal(again.state_dict()[name], value) for name, value in content.items())
    content["blocks.0.norm1.weight"][0] = float("nan")
    torch.save({"model": content}, tmp_path / "nan.pt")
    with pytest.raises(TkError, match=r"NaN or infinity in blocks.0.norm1.weight"):
        make_student(config(tmp_path, tmp_path / "run", weights=tmp_path / "nan.pt"))


def test_start__timm_model_and_its_shape(tmp_path: Path) -> None:
    settings = config(tmp_path, tmp_path / "run", model="test_vit", image_size=32)
    student = make_student(settings)
    torch.manual_seed(0)
    other = timm.create_model("test_vit", num_classes=0)
    assert student.backbone.width == other.embed_dim
    for name in ("b.pt", "other.pt"):
        export_backbone(tmp_path / name, student.backbone, shape_of(settings), {})
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    again = build(torch.load(tmp_path / "b.pt", weights_only=True)["metadata"]["backbone"])
    assert again.vit.state_dict().keys() == student.backbone.vit.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet18", 32, "cannot be pre-trained here"),
        ("vit_small_patch16_999", 32, "timm knows no such model"),
        ("vit_small_patch14_dinov2", 32, "patches of 14 pixels"),
    ],
)
def test_make_timm__what_it_refuses(name: str, size: int, message: str) -> None:
    with pytest.raises(TkError, match=message):
        make_timm(name, size)
