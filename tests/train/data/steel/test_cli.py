"""`tk data synth --kind steel | severstal | patches` in a row, as a user types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tk.train.data.steel.patches import PatchSummary
from tk.train.data.steel.prepare import PrepareSummary
from tk.train.data.steel.report import patch_lines, prepare_lines


def tk(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tk.cli", "data", *words.split()]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_chain__from_strips_to_patches(tmp_path: Path) -> None:
    done = tk(tmp_path, "synth steel --kind steel --images 8 --seed 1 --balanced")
    assert done.returncode == 0 and "8 strips" in done.stdout, done.stderr
    done = tk(tmp_path, "severstal steel boxes --min_contour_area 20 --pictures 2")
    assert done.returncode == 0 and "3 scratch" in done.stdout, done.stderr
    assert (tmp_path / "boxes" / "images" / "strip_1_00000.jpg").is_file()
    done = tk(tmp_path, "patches boxes patches --target 64 --background 2 --workers 2")
    assert done.returncode == 0 and "no_defect" in done.stdout, done.stderr
    assert "tk train embedder --data patches" in done.stdout
    assert list((tmp_path / "patches").glob("class_*/cropped/strip_*_patch_1.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("synth out --kind steel --size 512", "--size is for tools"),
        ("synth out --balanced", "--balanced is for steel"),
        ("severstal nothing out", "nothing/train.csv does not exist"),
        ("patches nothing out", "holds no defects.json"),
    ],
)
def test_commands__refuse(tmp_path: Path, words: str, message: str) -> None:
    done = tk(tmp_path, words)
    assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_lines__say_all_that_was_left_out() -> None:
    none = {kind: {"boxes": 0, "images": 0} for kind in (1, 2, 3, 4)}
    counts = {**none, 3: {"boxes": 7, "images": 5}, 1: {"boxes": 3, "images": 2}}
    summary = PrepareSummary(
        images=9,
        counts=counts,
        without=2,
        unreadable={"a.jpg": "a.jpg is empty"},
        missing=["b.jpg"],
        small=4,
        empty=5,
        repeated=6,
    )
    text = "\n".join(prepare_lines(Path("out"), summary))
    for words in (
        "9 images, 2 without", "7 boxes (70.0%) in 5 images", "4 parts", "5 rows", "6 rows",
        "1 images of the table missing", "1 images unreadable", "a.jpg is empty",
    ):  # fmt: skip
        assert words in text
    assert len(prepare_lines(Path("out"), PrepareSummary(images=1, counts=none))) == 6
    patches = PatchSummary({"class_1": 10, "class_3": 70}, 40, left_out=3)
    text = "\n".join(patch_lines(Path("out"), patches))
    for words in ("80 patches of 40 images", "uneven, 7.0 to 1", "87.5%", "macro-F1", "3 more"):
        assert words in text
    even = PatchSummary({"class_1": 10, "class_3": 12}, 9)
    assert "uneven" not in "\n".join(patch_lines(Path("out"), even))
