"""The square that is cut out round a defect, and which defects of an image are cut out."""

from __future__ import annotations

from collections.abc import Sequence

from tk.train.data.steel.prepared import Box, Defect

LEAST_SIDE = 16
"""Pixels; a smaller square would be nothing but interpolation."""


def square_window(box: Box, width: int, height: int, context: float) -> Box:
    """The square round a box, moved into the image where it would leave it.

    Its side is the box's longer side and `context` of that on both sides, at least `LEAST_SIDE` and
    at most the shorter side of the image: of a defect longer than the strip is high, the middle.

    Args:
        box: (x0, y0, x1, y1) whole pixels, half open, inside the image.
        width: of the image, pixels.
        height: of the image, pixels.
        context: 0 or more.

    Returns:
        (x0, y0, x1, y1) whole pixels, half open, always square and inside the image.
    """
    x0, y0, x1, y1 = box
    side = int(max(x1 - x0, y1 - y0) * (1 + 2 * context))
    side = min(max(side, LEAST_SIDE), width, height)
    left = min(max(0, (x0 + x1 - side) // 2), width - side)
    top = min(max(0, (y0 + y1 - side) // 2), height - side)
    return left, top, left + side, top + side


def choose_defects(defects: Sequence[Defect], most: int) -> list[Defect]:
    """Take at most `most` defects of an image: the largest of each class in turn.

    So a cluster of a hundred pits does not push the one crack of the same strip aside.
    """
    by_class: dict[int, list[Defect]] = {}
    for defect in sorted(defects, key=lambda d: (-d.area, d.box)):
        by_class.setdefault(defect.class_id, []).append(defect)
    rounds = sorted(
        ((place, kind) for kind, found in by_class.items() for place in range(len(found)))
    )
    return [by_class[kind][place] for place, kind in rounds[:most]]
