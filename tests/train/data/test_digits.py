from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tk.runtime.errors import TkError
from tk.train.data.digits import write_digits
from tk.train.embedder.data import find_crops, read_picture


def tk(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tk.cli", "data", "digits", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_data_digits__the_data_set_as_crops(tmp_path: Path) -> None:
    done = tk(tmp_path / "digits", "--size", 8)
    assert done.returncode == 0 and "1797" in done.stdout, done.stderr
    classes, crops = find_crops(tmp_path / "digits")
    assert classes == tuple("0123456789")
    source = load_digits()
    assert sorted(int(crop.path.stem) for crop in crops) == list(range(1797))
    assert all(source.target[int(crop.path.stem)] == crop.label for crop in crops)
    assert len({crop.group for crop in crops}) == 1797
    for crop in crops[::100]:
        image = read_picture(crop).image
        levels = np.rint(image[..., 0] * (16 / 255))
        assert image.shape == (8, 8, 3)
        assert (levels == source.images[int(crop.path.stem)]).all()


def test_write_digits__size_and_overwrite(tmp_path: Path) -> None:
    assert write_digits(tmp_path / "out", size=20) == 1797
    picture = cv2.imread(str(tmp_path / "out" / "0" / "cropped" / "0000.png"))
    assert picture is not None and picture.shape == (20, 20, 3)
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(TkError, match="--overwrite"):
        write_digits(tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").exists()
    write_digits(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    picture = cv2.imread(str(tmp_path / "out" / "0" / "cropped" / "0000.png"))
    assert picture is not None and picture.shape == (64, 64, 3)
    with pytest.raises(TkError, match="--size"):
        write_digits(tmp_path / "small", size=7)


@pytest.mark.slow
def test_digits__embedder_learns_them(tmp_path: Path) -> None:
    """The command of docs/embedder.md; about 25 s on 2 cores."""
    assert tk(tmp_path / "digits").returncode == 0
    words = f"""train embedder --data {tmp_path / "digits"} --out {tmp_path / "run"}
        --model_id test_resnet --no-pretrained --device cpu --aug light --img_size 32 --epochs 10
        --batch 32 --lr 4e-3 --margin_warmup 0.3 --warmup 10 --emb_dim 32 --seed 0"""
    command = [sys.executable, "-m", "tk.cli", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    test = next(r for r in map(json.loads, lines) if r.get("event") == "test")
    assert test["test_recall_at_1"] >= 0.97
    assert test["test_prototype_accuracy"] >= 0.97
