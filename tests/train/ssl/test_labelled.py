from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tk.runtime.errors import TkError
from tk.train.ssl.labelled import find_labelled


def put(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03d}.png"), np.full((4, 4, 3), number, np.uint8))


def test_find_labelled__a_fifth_of_every_class_is_asked(tmp_path: Path) -> None:
    put(tmp_path / "b" / "cropped", 20)
    put(tmp_path / "a", 3)
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    found = find_labelled(tmp_path)
    assert found.classes == ("a", "b") and len(found.files) == 23
    assert [int(found.asked[found.labels == label].sum()) for label in (0, 1)] == [1, 4]
    assert len(found.skipped) == 1 and "a/broken.png" in found.skipped[0]
    assert found.digest() == find_labelled(tmp_path).digest()
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "900.png")
    assert found.digest() != find_labelled(tmp_path).digest()


@pytest.mark.parametrize("name", ["val", "test"])
def test_find_labelled__given_division(tmp_path: Path, name: str) -> None:
    for split, count in (("train", 3), (name, 2)):
        for kind in ("x", "y"):
            put(tmp_path / split / kind, count)
    found = find_labelled(tmp_path)
    assert found.classes == ("x", "y")
    assert int(found.asked.sum()) == 4 and len(found.files) == 10
    assert all(
        asked == (name in path.parts) for path, asked in zip(found.files, found.asked, strict=True)
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 3}, "two classes"),
        ({"a": 3, "b": 1}, "class 'b'"),
        ({".": 2, "a": 3}, "no class folder"),
        ({"train/a": 3, "train/b": 3, "val/a": 1}, "class 'b'"),
        ({}, "no images under"),
    ],
)
def test_find_labelled__what_cannot_judge(
    tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    root = tmp_path / "labelled"
    root.mkdir()
    for name, count in sizes.items():
        put(root / name, count) if name != "." else put(root / "tmp", 0)
    if "." in sizes:
        cv2.imwrite(str(root / "loose.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TkError, match=message):
        find_labelled(root)
