"""Contact sheets: a sample of the pictures of each predicted class, most doubtful first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.draw import Color, text_ink
from tk.runtime.errors import TkError
from tk.runtime.images import read_image, write_jpeg
from tk.runtime.preprocess import Image, ImageSpec, fit

TILE, COLUMNS, GAP, LINE, FONT = 144, 8, 6, 18, 12
"""Pixels of a thumbnail's side, pictures in a row, and pixels between, per line and of its text."""

WRONG: Color = (220, 30, 30)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        file: the picture.
        lines: two lines under it.
        wrong: whether its true class is another one.
    """

    file: Path
    lines: tuple[str, str]
    wrong: bool = False


def sample(probabilities: Sequence[float], most: int) -> list[int]:
    """Places of at most so many pictures, spread from the most doubtful one to the surest."""
    order = np.argsort(np.asarray(probabilities), kind="stable")
    if len(order) <= most:
        return [int(place) for place in order]
    chosen = np.linspace(0, len(order) - 1, most).round().astype(int)
    return [int(order[place]) for place in np.unique(chosen)]


def sheet_name(place: int, name: str) -> str:
    """File of a class's sheet: its place and what of its name a file system takes."""
    plain = re.sub(r"[^\w-]+", "_", name).strip("_")[:60]
    return f"{place:03}_{plain or 'class'}.jpg"


def write_sheet(path: Path, title: str, tiles: Sequence[Tile]) -> None:
    """Write one sheet; a picture that cannot be read any more stays grey."""
    columns = min(COLUMNS, max(3, len(tiles)))
    rows = -(-len(tiles) // columns)
    height = TILE + 2 * LINE + GAP
    sheet = np.full((2 * LINE + rows * height, columns * (TILE + GAP) + GAP, 3), 255, np.uint8)
    _write(sheet, title, GAP, GAP, FONT + 4)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        x, y = GAP + column * (TILE + GAP), 2 * LINE + row * height
        sheet[y : y + TILE, x : x + TILE] = _thumbnail(tile)
        for number, line in enumerate(tile.lines):
            _write(sheet[:, : x + TILE], line, x, y + TILE + number * LINE, FONT, tile.wrong)
    write_jpeg(path, sheet)


def _thumbnail(tile: Tile) -> Image:
    spec = ImageSpec(TILE, TILE, anchor="center", pad=235)
    try:
        canvas = fit(spec, read_image(tile.file))[0]
    except TkError:
        canvas = np.full((TILE, TILE, 3), 128, np.uint8)
    if tile.wrong:
        for edge in (canvas[:3], canvas[-3:], canvas[:, :3], canvas[:, -3:]):
            edge[:] = WRONG
    return canvas


def _write(
    sheet: NDArray[np.uint8], text: str, x: int, y: int, size: int, wrong: bool = False
) -> None:
    """Write a line of text, black or red, cut where the sheet ends."""
    ink = text_ink(text, size, sheet.shape[1] - x)
    if ink is None:
        return
    patch = sheet[y : y + ink.shape[0], x : x + ink.shape[1]]
    share = ink[: patch.shape[0], :, None].astype(np.float32) / 255
    colour = np.asarray(WRONG if wrong else (20, 20, 20), np.float32)
    patch[:] = np.rint(patch + (colour - patch) * share)
