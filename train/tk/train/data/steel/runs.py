"""Severstal's run lengths: pairs `start length`, from 1, down the columns.

Not the codec of `predictions.json`, whose counts go along the rows and begin with zeros
(`tk.runtime.masks`): that one reads any of these lists too, and gives a wrong mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError

_EMPTY = ("", "nan")
"""How an empty mask is written: nothing, or what pandas makes of nothing."""
_LONGEST = 18
"""Digits of a number that fits 64 bits."""


def encode_column_runs(mask: NDArray[np.bool_]) -> str:
    """Write a mask as pairs `start length`, ascending; an empty mask is an empty text.

    Args:
        mask: (H, W) bool.
    """
    flat = np.zeros(mask.size + 2, np.int8)
    flat[1:-1] = mask.reshape(-1, order="F")
    # Positions from 1 where the value changes: starts and, one behind the last, ends in turn.
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack([starts, ends - starts], axis=1).ravel().tolist()))


def decode_column_runs(text: str, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """Read pairs `start length` into a mask; runs may stand in any order.

    Args:
        text: the pairs, or nothing (or `nan`) for an empty mask.
        height: of the image, pixels.
        width: of the image, pixels.
        where: what errors call the mask: its image, class and row.

    Returns:
        (height, width) bool.

    Raises:
        TkError: not whole numbers, an odd number of them, a run that leaves the image, has no
            length, or overlaps another.
    """
    flat = np.zeros(height * width, bool)
    if text.strip().lower() not in _EMPTY:
        for start, stop in _checked_runs(text, flat.size, where):
            flat[start:stop] = True
    return np.ascontiguousarray(flat.reshape(width, height).T)


def is_empty(text: str) -> bool:
    """Whether a field of run lengths says: no pixel."""
    return text.strip().lower() in _EMPTY


def _checked_runs(text: str, total: int, where: str) -> NDArray[np.int64]:
    """(N, 2) int64: first pixel and the one behind the last, from 0, ascending."""
    words = text.split()
    # isascii: `int` takes the digits of every script, which nobody means here.
    wrong = [w for w in words if not (w.isascii() and w.isdigit() and len(w) <= _LONGEST)]
    if wrong:
        raise _fault(where, "not a whole number", repr(wrong[0])[:40])
    if len(words) % 2:
        raise _fault(where, "a start without a length", f"{len(words)} numbers")
    pairs: NDArray[np.int64] = np.array(words, np.int64).reshape(-1, 2)
    bad = (pairs < 1).any(axis=1) | (pairs.sum(axis=1) - 1 > total)
    if bad.any():
        start, length = pairs[bad][0].tolist()
        raise _fault(where, f"a run outside the pixels 1..{total}", f"{start} {length}")
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    runs = np.stack([pairs[:, 0] - 1, pairs.sum(axis=1) - 1], axis=1)
    over = np.flatnonzero(runs[1:, 0] < runs[:-1, 1])
    if over.size:
        one, two = pairs[over[0]].tolist(), pairs[over[0] + 1].tolist()
        raise _fault(where, "overlapping runs", f"{one[0]} {one[1]} and {two[0]} {two[1]}")
    return runs


def _fault(where: str, what: str, found: str) -> TkError:
    return TkError(
        f"{where}: {what} in EncodedPixels",
        expected="pairs `start length` of whole numbers from 1, down the columns, inside the image",
        found=found,
    )
