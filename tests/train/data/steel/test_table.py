from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tk.runtime.errors import TkError
from tk.train.data.steel.table import read_table, write_table


def write(folder: Path, text: str) -> Path:
    path = folder / "train.csv"
    path.write_text(text, "utf-8")
    return path


def test_table__new_layout(tmp_path: Path) -> None:
    rows = [("b.jpg", 3, "5 2"), ("a.jpg", 4, "1 3 9 1"), ("a.jpg", 1, "7 1")]
    write_table(tmp_path / "train.csv", rows)
    assert (tmp_path / "train.csv").read_text().splitlines()[0] == "ImageId,ClassId,EncodedPixels"
    with open(tmp_path / "train.csv", newline="") as file:
        read = [(r["ImageId"], int(r["ClassId"]), r["EncodedPixels"]) for r in csv.DictReader(file)]
    assert read == rows
    table = read_table(tmp_path / "train.csv")
    assert {name: [(r.class_id, r.text, r.number) for r in found]
            for name, found in table.rows.items()} == {
        "b.jpg": [(3, "5 2", 2)], "a.jpg": [(1, "7 1", 4), (4, "1 3 9 1", 3)],
    }  # fmt: skip
    assert (table.empty, table.repeated) == (0, 0)


def test_table__old_layout_names_good_strips_too(tmp_path: Path) -> None:
    text = "ImageId_ClassId,EncodedPixels\n"
    text += "a_b.jpg_1,\na_b.jpg_2,3 4\na_b.jpg_3,\na_b.jpg_4,\n"
    text += "".join(f"good.jpg_{kind},\n" for kind in range(1, 5))
    table = read_table(write(tmp_path, text))
    assert [(r.class_id, r.text) for r in table.rows["a_b.jpg"]] == [(2, "3 4")]
    assert table.rows["good.jpg"] == []
    assert table.empty == 7


def test_table__byte_order_mark_windows_lines_blank_lines_and_a_long_mask(tmp_path: Path) -> None:
    mask = " ".join(f"{2 * i + 1} 1" for i in range(40_000))
    text = f"\ufeffImageId,ClassId,EncodedPixels\r\na.jpg,2,{mask}\r\n\r\nb.jpg,1,nan\r\n"
    table = read_table(write(tmp_path, text))
    assert table.rows["a.jpg"][0].text == mask
    assert (table.rows["b.jpg"], table.empty) == ([], 1)


def test_table__a_row_said_twice_counts_once(tmp_path: Path) -> None:
    text = "ImageId,ClassId,EncodedPixels\na.jpg,2,3 4\na.jpg,2,3  4\n"
    table = read_table(write(tmp_path, text))
    assert len(table.rows["a.jpg"]) == 1
    assert table.repeated == 1


HEADER = "ImageId,ClassId,EncodedPixels\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("image,class,rle\na.jpg,1,1 2\n", "image,class,rle"),
        ("ImageId,EncodedPixels\na.jpg,1 2\n", "ImageId,EncodedPixels"),
        (HEADER + "a.jpg,5,1 2\n", "line 2: not a class of defects"),
        (HEADER + "a.jpg,0,1 2\n", "line 2: not a class of defects"),
        (HEADER + "a.jpg,,1 2\n", "line 2: not a class of defects"),
        (HEADER + "a.jpg,1.0,1 2\n", "line 2: not a class of defects"),
        (HEADER + "a.jpg,1\n", "line 2: not as many fields"),
        (HEADER + "a.jpg,1,1 2,9\n", "line 2: not as many fields"),
        (HEADER + ",1,1 2\n", "line 2: not the name of an image"),
        (HEADER + "../a.jpg,1,1 2\n", "line 2: not the name of an image"),
        (HEADER + "a.jpg,1,1 2\nb.jpg,1,1 2\na.jpg,1,1 3\n", "line 4: a second, different mask"),
        ("ImageId_ClassId,EncodedPixels\na.jpg,1 2\n", "line 2: not the name of an image"),
        ("ImageId_ClassId,EncodedPixels\na.jpg_7,1 2\n", "line 2: not a class of defects"),
    ],
)
def test_table__refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TkError) as caught:
        read_table(write(tmp_path, text))
    assert message in str(caught.value)


def test_table__missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="does not exist"):
        read_table(tmp_path / "train.csv")
    (tmp_path / "train.csv").write_bytes(b"ImageId\xff\xfe")
    with pytest.raises(TkError, match="UTF-8"):
        read_table(tmp_path / "train.csv")
