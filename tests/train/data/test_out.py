"""Where `tk data` may write: never over what it reads, nor over what it did not make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tk.runtime.errors import TkError
from tk.train.data.digits import write_digits
from tk.train.data.steel.dataset import write_steel_dataset
from tk.train.data.steel.download import download_severstal
from tk.train.data.steel.patches import cut_patches
from tk.train.data.steel.prepare import prepare_severstal
from tk.train.data.synth.dataset import write_tools_dataset

MAKERS: dict[str, Callable[[Path, Path], Any]] = {
    "digits": lambda out, data: write_digits(out, size=8, overwrite=True),
    "steel": lambda out, data: write_steel_dataset(out, images=1, seed=0, overwrite=True),
    "tools": lambda out, data: write_tools_dataset(out, images=1, size=256, seed=0, overwrite=True),
    "download": lambda out, data: download_severstal(out, overwrite=True),
    "severstal": lambda out, data: prepare_severstal(data, out, overwrite=True),
    "patches": lambda out, data: cut_patches(data, out, overwrite=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_data__only_its_own_is_replaced(name: str, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    for file in ("annotations.json", "images/one.jpg", "crops/hammer/cropped/one.jpg"):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("labelled by hand")
    with pytest.raises(TkError, match="not replaced"):
        MAKERS[name](out, tmp_path / "data")
    assert (out / "images" / "one.jpg").read_text() == "labelled by hand"


@pytest.mark.parametrize("name", ["digits", "steel", "tools"])
def test_data__its_own_is_replaced(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        MAKERS[name](tmp_path / "out", tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "link"), [("severstal", "train_images"), ("patches", "images")])
def test_data__pictures_behind_a_link_are_an_input(name: str, link: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / link).symlink_to(tmp_path / "out" / "pictures")
    for mark in ("defects.json", "patches.json"):
        (tmp_path / "out" / mark).touch()
    with pytest.raises(TkError, match=f"holds the input .*{link}"):
        MAKERS[name](tmp_path / "out", tmp_path / "data")
