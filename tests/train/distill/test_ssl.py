"""Steps 4 and 5: the backbone learns, the test stays unseen, its features get a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_runs import tiny_config, write_crops

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.classifier.checkpoint import load_encoder
from tk.train.distill.config import DistillConfig
from tk.train.distill.pipeline import train_distill
from tk.train.distill.split import read_split
from tk.train.distill.ssl import PICTURES, ssl_settings
from tk.train.ssl.config import SslConfig


def config(tmp_path: Path, **changes: object) -> DistillConfig:
    values: dict[str, object] = dict(
        model_id="test_vit",
        ssl=True,
        ssl_epochs=1,
        ssl_batch_size=16,
        ssl_lr=1e-3,
        ssl_freeze_blocks=2,
        ssl_out_dim=16,
        ssl_local_crops=1,
        seeds=1,
        random_floor=False,
        threads=1,
    )
    return tiny_config(tmp_path / "crops", tmp_path / "run", **(values | changes))


def test_ssl__moves_the_blocks_that_are_not_frozen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_crops(tmp_path / "crops", 12)
    run = train_distill(config(tmp_path))
    before, after = (
        load_encoder(run / name)[0].backbone.state_dict()
        for name in ("backbone.pth", "backbone_ssl.pth")
    )
    # The teacher's average of equal numbers may be off by their last bit.
    moved = {name for name in before if not torch.allclose(before[name], after[name], 1e-6, 1e-7)}
    frozen = ("patch_embed.", "blocks.0.", "blocks.1.")
    assert moved and not any(name.startswith(frozen) for name in moved)
    # The seed's pattern `blocks.1` froze blocks 10 and 11 as well, and so everything.
    assert all(any(name.startswith(f"blocks.{i}.") for name in moved) for i in (2, 3, 4, 5))
    assert not np.array_equal(np.load(run / "features.npy"), np.load(run / "features_ssl.npy"))
    assert np.array_equal(np.load(run / "labels.npy"), np.load(run / "labels_ssl.npy"))
    items = read_split(run / "class_info.json")
    seen = {path.name for path in (run / PICTURES).rglob("*.png")}
    assert len(seen) == 38
    assert not seen & {Path(items.files[i]).name for i in items.rows("test")}
    rows = [row["name"] for row in read_json(run / "results.json")["rows"]]
    assert rows[-1] == "linear_ssl"
    capsys.readouterr()
    train_distill(config(tmp_path))
    assert "ssl: unchanged" in (text := capsys.readouterr().err)
    assert text.count(": unchanged") == 6
    # Other options begin a new training instead of going on with the old one.
    train_distill(config(tmp_path, ssl_lr=2e-3, step="ssl"))
    assert "going on" not in capsys.readouterr().err


def test_ssl__options_of_the_seed(tmp_path: Path) -> None:
    settings = SslConfig(**ssl_settings(DistillConfig(data=tmp_path, out=tmp_path)))
    assert (settings.epochs, settings.batch_size, settings.lr) == (3, 32, 1e-6)
    assert (settings.weight_decay, settings.weight_decay_end) == (1e-4, 1e-4)
    assert settings.freeze_blocks == 10 and settings.momentum == 0.996
    assert settings.model == "vit_small_patch14_dinov2" and settings.image_size == 224


def test_ssl__a_backbone_that_is_no_transformer(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", 6)
    with pytest.raises(TkError, match="mobilevit_xs cannot be pre-trained here"):
        train_distill(config(tmp_path, model_id="mobilevit_xs"))
