from __future__ import annotations

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
