"""`--device cpu --gpus 2`: two processes give what one gives, within rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.embedder.test_train import write_digits

from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.train import train_embedder
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.folder import RunFolder


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [False, True])
def test_embedder__two_processes_equal_one(tmp_path: Path, freeze: bool) -> None:
    root = write_digits(tmp_path / "digits", 150)
    values: dict[str, Any] = dict(
        data=root, model_id="test_vit", pretrained=False, img_size=32, batch_size=16, epochs=2,
        head_norm="layer", min_per_class=3, emb_dim=16, threads=1, device="cpu",
        freeze_backbone=freeze, feature_views=2, layer_decay=0.8, sub_centers=2,
    )  # fmt: skip
    train_embedder(EmbedderConfig(out=tmp_path / "one", **values))
    train_embedder(EmbedderConfig(out=tmp_path / "two", gpus=2, **values))
    one, two = (load_checkpoint(tmp_path / n / "checkpoint_last.pth") for n in ("one", "two"))
    assert len(two["rng"]) == 2
    for part in (one["model"], one["others"]["margin"]):
        other = two["model"] if part is one["model"] else two["others"]["margin"]
        for name, value in part.items():
            assert torch.allclose(value, other[name], rtol=1e-3, atol=2e-4), name
    records = [RunFolder(tmp_path / n).read_metrics() for n in ("one", "two")]
    assert [r.get("event") for r in records[0]] == [r.get("event") for r in records[1]]
    for first, second in zip(*records, strict=True):
        for name in ("loss", "train_loss", "val_loss", "train_macro_auc", "val_map_at_r"):
            if name in first:
                assert first[name] == pytest.approx(second[name], rel=2e-3), name
    vectors = [np.load(tmp_path / n / "prototypes.npz")["stacks"] for n in ("one", "two")]
    assert np.abs((vectors[0] * vectors[1]).sum(axis=1) - 1).max() < 1e-4
