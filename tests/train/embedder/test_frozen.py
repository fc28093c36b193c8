"""Features of a frozen backbone, kept: the same training, many times faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.embedder.test_train import write_digits

from tk.runtime.errors import TkError
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.train import train_embedder
from tk.train.run.folder import RunFolder


def settings(root: Path, out: Path, **changes: Any) -> EmbedderConfig:
    values: dict[str, Any] = dict(
        data=root, out=out, model_id="test_vit", pretrained=False, img_size=32, batch_size=16,
        freeze_backbone=True, epochs=3, aug="tools", min_per_class=3, emb_dim=16, threads=1,
        device="cpu", seed=5,
    )  # fmt: skip
    return EmbedderConfig(**(values | changes))


def losses(out: Path) -> list[float]:
    return [r["loss"] for r in RunFolder(out).read_metrics() if "event" not in r]


def figures(out: Path, name: str) -> list[float]:
    return [r[name] for r in RunFolder(out).read_metrics() if r.get("event") == "eval"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 150)


def test_frozen__with_a_view_per_epoch_nothing_changes(digits: Path, tmp_path: Path) -> None:
    train_embedder(settings(digits, tmp_path / "kept", feature_views=4))
    train_embedder(settings(digits, tmp_path / "plain", feature_views=0))

    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    for name in ("train_accuracy", "val_accuracy", "val_loss", "val_recall_at_1"):
        kept, plain = (figures(tmp_path / run, name) for run in ("kept", "plain"))
        assert kept == pytest.approx(plain, rel=1e-4), name


def test_frozen__files_are_numpy_and_stated(digits: Path, tmp_path: Path) -> None:
    train_embedder(settings(digits, tmp_path / "run", feature_views=2))
    folder = tmp_path / "run" / "features"
    sizes = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]["crops"]
    assert np.load(folder / "train.npy").shape == (sizes["train"] * 2, 64)
    assert np.load(folder / "val.npy").shape == (sizes["val"], 64)


def test_frozen__are_reused_and_made_anew_for_other_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_digits(tmp_path / "digits", 150)
    again = settings(root, tmp_path / "run", feature_views=1, epochs=1, overwrite=True)
    train_embedder(again)
    capsys.readouterr()
    train_embedder(again)
    assert "features train: 105 rows of train.npy are reused" in capsys.readouterr().err
    crop = next((root / "цифра 3" / "cropped").iterdir())
    crop.write_bytes(next((root / "цифра 4" / "cropped").iterdir()).read_bytes())
    train_embedder(again)
    assert "made with other options: crops" in capsys.readouterr().err


def test_frozen__other_margin_other_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_digits(tmp_path / "digits", 150)
    values: dict[str, Any] = dict(feature_views=1, epochs=1, overwrite=True)
    train_embedder(settings(root, tmp_path / "run", crop_margin=0.0, **values))
    train_embedder(settings(root, tmp_path / "run", crop_margin=0.5, **values))
    assert "made with other options: crop_spec" in capsys.readouterr().err


def test_frozen__bound_on_disk_is_kept(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(TkError, match=r"--feature_views 1, or --feature_gb 0\.0"):
        train_embedder(settings(digits, tmp_path / "run", feature_views=50, feature_gb=5e-5))
