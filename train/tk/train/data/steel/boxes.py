"""From a mask to boxes: its outer contours, without those too small to look at."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError


@dataclass(frozen=True, eq=False)
class Region:
    """One connected part of a mask.

    Attributes:
        box: (x0, y0, x1, y1) whole pixels, half open.
        pixels: (y1 - y0, x1 - x0) bool, the part within its box; holes stay holes.
    """

    box: tuple[int, int, int, int]
    pixels: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """Pixels of the part."""
        return int(np.count_nonzero(self.pixels))


@dataclass(frozen=True)
class Limits:
    """What is too small to be a defect.

    Attributes:
        min_contour_area: least area inside a contour, as `cv2.contourArea` gives it: that of the
            polygon through the pixels' centres, so a line one pixel wide has none; 0 or more.
        min_box: least width and least height of a box, pixels, 1 or more.

    Raises:
        TkError: one of them is out of range.
    """

    min_contour_area: float = 32
    min_box: int = 8

    def __post_init__(self) -> None:
        if not (self.min_contour_area >= 0 and self.min_box >= 1):  # NaN is refused too
            raise TkError(
                "what is too small for a defect is out of range",
                expected="--min-contour-area of 0 or more, --min-box of 1 or more",
                found=f"{self.min_contour_area} and {self.min_box}",
            )


def find_regions(mask: NDArray[np.bool_], limits: Limits) -> tuple[list[Region], int]:
    """Split a mask into its parts, joined over edges and corners.

    Args:
        mask: (H, W) bool.
        limits: what is left out.

    Returns:
        the parts, from the left, and how many were left out.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    kept = []
    for contour in contours:
        x, y, width, height = cv2.boundingRect(contour)
        if cv2.contourArea(contour) >= limits.min_contour_area and (
            min(width, height) >= limits.min_box
        ):
            filled = np.zeros((height, width), np.uint8)
            cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED, offset=(-x, -y))
            part = mask[y : y + height, x : x + width] & (filled > 0)
            kept.append(Region((x, y, x + width, y + height), part))
    return sorted(kept, key=lambda region: region.box), len(contours) - len(kept)
