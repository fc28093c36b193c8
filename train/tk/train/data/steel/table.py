"""`train.csv`: which image has a mask of which class, in the new and in the old layout."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tk.runtime.errors import TkError
from tk.runtime.files import write_bytes
from tk.train.data.steel.layout import CLASSES
from tk.train.data.steel.runs import is_empty

COLUMNS = ("ImageId", "ClassId", "EncodedPixels")
OLD_COLUMNS = ("ImageId_ClassId", "EncodedPixels")
"""The first edition of the competition: a row for every image and class, most of them empty."""


@dataclass(frozen=True)
class Row:
    """One mask: `text` are its run lengths, `number` its line in the file, from 1."""

    class_id: int
    text: str
    number: int


@dataclass
class MaskTable:
    """What a table says.

    Attributes:
        rows: image file name -> its masks that are not empty, classes ascending; images that are
            named without any mask are in it too.
        empty: rows with an empty mask.
        repeated: rows that say once more what an earlier one said.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    empty: int = 0
    repeated: int = 0


def read_table(path: Path) -> MaskTable:
    """Read `train.csv`.

    Raises:
        TkError: no such file, other columns, a bad name or class, two different masks of one image
            and class.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise TkError(
            f"{path} does not exist",
            expected="train.csv and train_images/, as the competition packs them",
            fix="tk data download DATA, or tk data synth DATA --kind steel",
        ) from None
    except UnicodeDecodeError as error:
        raise TkError(f"{path} is not UTF-8 text", found=str(error)) from None
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a mask of noise is longer than 131072
    lines = csv.reader(io.StringIO(text, newline=""))
    header = tuple(name.strip() for name in next(lines, []))
    if header not in (COLUMNS, OLD_COLUMNS):
        raise TkError(
            f"{path} has other columns than the competition's table",
            expected=f"{','.join(COLUMNS)} (or, older, {','.join(OLD_COLUMNS)})",
            found=",".join(header)[:200] or "an empty file",
        )
    table = MaskTable()
    for values in lines:
        if values:
            _add(table, values, header, f"{path.name}, line {lines.line_num}", lines.line_num)
    for rows in table.rows.values():
        rows.sort(key=lambda row: row.class_id)
    return table


def write_table(path: Path, rows: Iterable[tuple[str, int, str]]) -> None:
    """Write `train.csv`: image name, class and run lengths, one row per image and class."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _add(
    table: MaskTable, values: list[str], header: tuple[str, ...], where: str, number: int
) -> None:
    if len(values) != len(header):
        raise TkError(
            f"{where}: not as many fields as columns",
            expected=",".join(header),
            found=f"{len(values)} fields",
        )
    image, class_text = values[0].strip(), values[-2].strip()
    if header == OLD_COLUMNS:
        image, _, class_text = image.rpartition("_")
    if not image or "/" in image or "\\" in image or image in (".", ".."):
        raise TkError(f"{where}: not the name of an image", found=values[0][:80])
    if class_text not in map(str, CLASSES):
        raise TkError(
            f"{where}: not a class of defects",
            expected=", ".join(map(str, CLASSES)),
            found=class_text[:40] or values[0][:80],
        )
    found = table.rows.setdefault(image, [])
    if is_empty(values[-1]):
        table.empty += 1
        return
    row = Row(int(class_text), " ".join(values[-1].split()), number)
    earlier = next((other for other in found if other.class_id == row.class_id), None)
    if earlier is None:
        found.append(row)
    elif earlier.text == row.text:
        table.repeated += 1
    else:
        raise TkError(
            f"{where}: a second, different mask of {image}, class {row.class_id}",
            expected="one row per image and class",
            found=f"the first is in line {earlier.number}",
        )
