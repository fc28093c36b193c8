"""What `tk.train` gives to user code: backbones by specification, several side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tk.train
from tk.runtime.errors import TkError
from tk.train import MultiStreamEncoder, load_dinov2_backbone
from tk.train.ssl.backbone.export import export_backbone
from tk.train.ssl.backbone.vit import make_vit

SHAPE: dict[str, Any] = dict(
    image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=4.0
)


def write_backbone(path: Path, seed: int, *, broken: bool = False) -> str:
    """Write a backbone and return its specification."""
    torch.manual_seed(seed)
    backbone = make_vit(16, 4, 16, 2, 2)
    if broken:
        with torch.no_grad():
            backbone.vit.blocks[1].norm1.bias[3] = float("inf")
    export_backbone(path, backbone, SHAPE, {"mean": [0.5] * 3, "std": [0.25] * 3})
    return f"file::{path}:slt_vitsmall_patch16"


def test_multistream__each_stream_through_its_backbone(tmp_path: Path) -> None:
    face = write_backbone(tmp_path / "face.pt", 0)
    hand = load_dinov2_backbone(write_backbone(tmp_path / "hand.pt", 1))
    encoder = MultiStreamEncoder(backbones={"face": face, "left": hand, "right": hand}).eval()
    streams = {
        "right": torch.randn(2, 3, 16, 16),
        "face": torch.randn(3, 3, 24, 16),
        "left": torch.randn(1, 3, 16, 16),
    }
    with torch.inference_mode():
        found = encoder(streams)
        assert list(found) == ["right", "face", "left"]
        assert torch.equal(found["face"], load_dinov2_backbone(face)(streams["face"]))
        assert torch.equal(found["left"], hand(streams["left"]))
        assert torch.equal(found["right"], hand(streams["right"]))
    one = sum(p.numel() for p in hand.parameters())
    assert sum(p.numel() for p in encoder.parameters()) == 2 * one  # the hands share theirs


@pytest.mark.parametrize(
    ("backbones", "message"),
    [
        ({}, "needs a backbone"),
        ({"a.b": nn.Identity()}, "no name for a stream"),
        ({"": nn.Identity()}, "no name for a stream"),
        ({"forward": nn.Identity()}, "no name for a stream"),
        ({"face": "file::nowhere.pt:slt_vitsmall_patch16"}, "there is no backbone file"),
    ],
)
def test_multistream__bad_backbones(backbones: Any, message: str) -> None:
    with pytest.raises(TkError, match=message):
        MultiStreamEncoder(backbones=backbones)


def test_multistream__unknown_stream() -> None:
    encoder = MultiStreamEncoder({"face": nn.Identity()})
    with pytest.raises(TkError, match="no backbone for this stream") as caught:
        encoder({"pose": torch.zeros(1, 3, 16, 16)})
    assert "face" in str(caught.value) and "pose" in str(caught.value)


def test_load_dinov2_backbone__refuses_weights_that_are_no_numbers(tmp_path: Path) -> None:
    spec = write_backbone(tmp_path / "a:b.pt", 0, broken=True)
    with pytest.raises(TkError, match=r"NaN or infinity in blocks\.1\.norm1\.bias"):
        load_dinov2_backbone(spec)


def test_tk_train__imports_without_torch_and_knows_its_names() -> None:
    code = "import sys, tk.train, tk.train.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in tk.train.__all__:
        assert getattr(tk.train, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tk.train.nothing
