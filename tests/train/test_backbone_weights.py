from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.train.embedder.model import EmbedNet
from tk.train.run.checkpoint import save_checkpoint

State = dict[str, Tensor]


def source(model_id: str, **options: Any) -> Any:
    """A timm model with every tensor its own, none at zeros or ones as new models have them."""
    model = timm.create_model(model_id, **options)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=random) + 0.1)
    return model


def same(net: EmbedNet, model: nn.Module) -> bool:
    expected = model.state_dict()
    return all(torch.equal(v, expected[k]) for k, v in net.backbone.state_dict().items())


@pytest.mark.parametrize("model_id", ["test_resnet", "test_vit", "test_convnext", "test_byobnet"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights__timm_file_with_classifier(model_id: str, suffix: str, tmp_path: Path) -> None:
    options = {"img_size": 32, "global_pool": "token"} if model_id == "test_vit" else {}
    model, path = source(model_id, num_classes=5, **options), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    assert same(EmbedNet(model_id, 8, 32, pretrained=True, weights=path), model)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def dino_teacher(state: State) -> Any:
    heads = {"dino_head.mlp.0.weight": torch.ones(2), "ibot_head.last.weight": torch.ones(2)}
    teacher = prefixed({**prefixed(state, "backbone."), **heads}, "module.")
    return {"student": prefixed(state, "module.student."), "teacher": teacher, "epoch": 3}


def ema(state: State) -> Any:
    last = {name: value * 0 for name, value in state.items()}
    return {"state_dict": last, "state_dict_ema": state, "optimizer": {"state": {}}}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "model and metadata": lambda s: {"model": s, "metadata": {"epoch": 3, "note": "плоскогубцы"}},
    "teacher of DINO": dino_teacher,
    "state_dict of Lightning": lambda s: {
        "state_dict": {**prefixed(s, "model.encoder."), "loss.centers": torch.ones(2)}
    },
    "distributed and compiled": lambda s: prefixed(s, "module._orig_mod."),
    "timm's training script": lambda s: {
        "arch": "test_vit", "state_dict": s, "args": argparse.Namespace(lr=0.1, model="test_vit"),
    },
    "moving average beside the last": ema,
    "under backbone": lambda s: {"backbone": s},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights__layouts(layout: str, tmp_path: Path) -> None:
    model = source("test_vit", num_classes=0, img_size=32, global_pool="token")
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "w.pth")
    assert same(EmbedNet("test_vit", 8, 32, weights=tmp_path / "w.pth"), model)


@pytest.mark.parametrize(
    ("model_id", "options", "sizes", "resampled"),
    [
        ("test_vit", {"global_pool": "token"}, (64, 48), "pos_embed"),
        ("vit_tiny_patch16_dinov3_qkvb", {"global_pool": "token"}, (64, 48), ""),
        ("swin_tiny_patch4_window7_224", {}, (224, 160), "relative_position_bias_table"),
    ],
)
def test_weights__of_another_image_size(
    model_id: str,
    options: dict[str, Any],
    sizes: tuple[int, int],
    resampled: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = source(model_id, img_size=sizes[0], num_classes=0, **options)
    path = tmp_path / "w.pth"
    torch.save(model.state_dict(), path)
    by_timm = timm.create_model(
        model_id, pretrained=True, pretrained_cfg_overlay={"file": str(path)},
        img_size=sizes[1], num_classes=0, **options,
    )  # fmt: skip
    net = EmbedNet(model_id, 8, sizes[1], weights=path)
    assert same(net, by_timm)
    note = capsys.readouterr().err
    if resampled:
        before = model.state_dict()
        assert any(k.endswith(resampled) and before[k].shape != v.shape
                   for k, v in net.backbone.state_dict().items())  # fmt: skip
        assert resampled in note and "resampled" in note
    else:
        assert note == "" and same(net, model)


def test_weights__of_our_own_checkpoint(tmp_path: Path) -> None:
    model = source("test_resnet", num_classes=0)
    net = EmbedNet("test_resnet", 8, 32)
    net.backbone.load_state_dict(model.state_dict())
    state = {"task": "embedder", "config": json.dumps({"model_id": "test_resnet"}),
             "classes": "[]", "image_spec": "", "crop_spec": "", "step": 1, "epoch": 0,
             "model": net.state_dict()}  # fmt: skip
    save_checkpoint(tmp_path / "checkpoint_best.pth", state)
    other = EmbedNet("test_resnet", 16, 64, weights=tmp_path / "checkpoint_best.pth")
    assert same(other, model)
    with pytest.raises(TkError, match="does not fit the backbone test_byobnet") as caught:
        EmbedNet("test_byobnet", 16, 64, weights=tmp_path / "checkpoint_best.pth")
    assert "--model_id test_resnet" in caught.value.fix
    save_checkpoint(tmp_path / "detector.pth", {**state, "task": "detector"})
    with pytest.raises(TkError, match="another task"):
        EmbedNet("test_resnet", 16, 64, weights=tmp_path / "detector.pth")


def meta_dinov2(state: State) -> State:
    """Names as in Meta's files with registers, where the class token has a position too."""
    state = dict(state)
    position = torch.full_like(state["cls_token"], 0.25)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["register_tokens"] = state.pop("reg_token")
    return {**state, "mask_token": torch.ones(1, 384)}


def meta_dinov3(state: State, biases: bool = True) -> State:
    """Names as in Meta's files."""
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    found = {"mask_token": torch.ones(1, 192), "rope_embed.periods": torch.ones(16)}
    for name, value in state.items():
        if name.endswith("attn.q_bias"):
            v_bias = state[name.replace("q_bias", "v_bias")]
            qkv = torch.cat([value, torch.zeros_like(value), v_bias])
            found[name.replace("q_bias", "qkv.bias")] = qkv if biases else qkv * 0
            found[name.replace("q_bias", "qkv.bias_mask")] = torch.full_like(qkv, torch.nan)
        elif not name.endswith("attn.v_bias"):
            for timm_name, meta_name in names.items():
                name = name.replace(timm_name, meta_name)
            found[name] = value
    return found


def test_weights__meta_dinov2_with_registers(tmp_path: Path) -> None:
    model_id = "vit_small_patch14_reg4_dinov2"
    model = source(model_id, num_classes=0, img_size=28)
    torch.save(meta_dinov2(model.state_dict()), tmp_path / "w.pth")
    found = EmbedNet(model_id, 8, 28, weights=tmp_path / "w.pth").backbone.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_weights__meta_dinov2_without_registers(tmp_path: Path) -> None:
    model = source("test_vit", num_classes=0, img_size=32, global_pool="token")
    torch.save({**model.state_dict(), "mask_token": torch.ones(1, 64)}, tmp_path / "w.pth")
    assert same(EmbedNet("test_vit", 8, 32, weights=tmp_path / "w.pth"), model)


def test_weights__meta_dinov3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_id, path = "vit_tiny_patch16_dinov3_qkvb", tmp_path / "w.pth"
    model = source(model_id, num_classes=0)
    torch.save({"teacher": prefixed(meta_dinov3(model.state_dict()), "backbone.")}, path)
    assert same(EmbedNet(model_id, 8, 32, weights=path), model)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("biases", [False, True])
def test_weights__meta_dinov3_biases_are_not_dropped_unseen(biases: bool, tmp_path: Path) -> None:
    """timm's models without `qkvb` have no such bias: fine for Meta's files, where it is 0."""
    model, path = source("vit_small_patch16_dinov3_qkvb", num_classes=0), tmp_path / "w.pth"
    torch.save(meta_dinov3(model.state_dict(), biases), path)
    if biases:
        with pytest.raises(TkError, match=r"12 too many \(blocks.0.attn.qkv.bias"):
            EmbedNet("vit_small_patch16_dinov3", 8, 32, weights=path)
    else:
        assert same(EmbedNet("vit_small_patch16_dinov3", 8, 32, weights=path), model)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without("layer4.0.conv1.weight"), r"^1 missing \(layer4.0.conv1.weight\)$"),
        (without("layer4.0.bn1.running_var"), r"^1 missing \(layer4.0.bn1.running_var\)$"),
        (
            lambda s: {**s, "conv1.0.weight": torch.ones(8, 1, 3, 3)},
            r"^1 misshapen \(conv1.0.weight 8x1x3x3 for \d+x3x3x3\)$",
        ),
        (
            lambda s: {**s, "layer4.1.conv1.weight": torch.ones(3)},
            r"^1 too many \(layer4.1.conv1.weight\)$",
        ),
        (lambda s: {"a": torch.ones(3)}, r"^\d+ missing \(conv1.0.weight, .*, \.\.\.\)$"),
    ],
)
def test_weights__nothing_is_silently_missing(
    change: Callable[[State], State], found: str, tmp_path: Path
) -> None:
    torch.save(change(source("test_resnet").state_dict()), tmp_path / "w.pth")
    with pytest.raises(TkError, match="does not fit the backbone test_resnet") as caught:
        EmbedNet("test_resnet", 8, 32, weights=tmp_path / "w.pth")
    assert re.search(found, caught.value.found), caught.value.found


@pytest.mark.parametrize(
    "metadata",
    [
        {"arch": "test_byobnet"},
        {"metadata": {"model": {"name": "timm/test_byobnet.r160_in1k"}, "lr": 0.1}},
        {"args": argparse.Namespace(model="test_byobnet", opt="adamw")},
    ],
)
def test_weights__of_another_model_are_told_apart(metadata: dict[str, Any], tmp_path: Path) -> None:
    model = source("test_byobnet")
    torch.save({"state_dict": model.state_dict(), **metadata}, tmp_path / "w.pth")
    with pytest.raises(TkError, match="does not fit the backbone test_resnet") as caught:
        EmbedNet("test_resnet", 8, 32, weights=tmp_path / "w.pth")
    assert caught.value.fix.startswith("--model_id test_byobnet")
    assert same(EmbedNet("test_byobnet", 8, 32, weights=tmp_path / "w.pth"), model)


def good(path: Path) -> bytes:
    torch.save(source("test_resnet").state_dict(), path)
    return path.read_bytes()


def pickled(path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (lambda p: None, "w.pth", "there is no weights file"),
        (Path.mkdir, "w.pth", "there is no weights file"),
        (Path.touch, "w.pth", "no weights that can be loaded safely"),
        (Path.touch, "w.safetensors", "no weights that can be loaded safely"),
        (lambda p: p.write_bytes(good(p)[:5000]), "w.pth", "no weights that can be loaded safely"),
        (
            lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" * 9),
            "w.pt",
            "no weights that can be loaded",
        ),
        (lambda p: p.write_bytes(good(p)), "w.safetensors", "no weights that can be loaded safely"),
        (pickled, "w.pth", "holds Python objects"),
        (lambda p: torch.save(torch.ones(3), p), "w.pth", "holds no weights"),
        (lambda p: torch.save({"model": {"lr": 0.1}}, p), "w.pth", "holds no weights"),
    ],
)
def test_weights__unusable_files(
    write: Callable[[Path], Any], name: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(TkError, match=message):
        EmbedNet("test_resnet", 8, 32, weights=tmp_path / name)


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("sprung"),)


def test_weights__nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**source("test_resnet").state_dict(), "trap": Trap()}, "w.pth")
    with pytest.raises(TkError, match="holds Python objects"):
        EmbedNet("test_resnet", 8, 32, weights=Path("w.pth"))
    assert not Path("sprung").exists()
