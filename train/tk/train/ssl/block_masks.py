"""Block-wise masks of iBOT (arXiv:2111.07832), drawn as in BEiT (arXiv:2106.08254, algorithm 1)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SMALLEST = 4
"""Patches of a block, at least, where so many are left to mask."""
ATTEMPTS = 10


def block_masks(
    rng: np.random.Generator,
    grid: tuple[int, int],
    count: int,
    *,
    probability: float,
    ratio: tuple[float, float],
    aspect: float,
) -> NDArray[np.bool_]:
    """Draw masks of rectangles.

    Args:
        grid: rows and columns of patches.
        count: number of masks.
        probability: share of the masks that hide anything.
        ratio: least and largest share of the patches that such a mask hides, uniform.
        aspect: height / width of a block is in aspect..1 / aspect, log-uniform.

    Returns:
        (count, rows, columns); true is hidden. No mask hides more than it should.
    """
    rows, columns = grid
    masks = np.zeros((count, rows, columns), np.bool_)
    for mask in masks:
        if rng.random() < probability:
            _fill(rng, mask, int(rows * columns * rng.uniform(*ratio)), math.log(aspect))
    return masks


def _fill(
    rng: np.random.Generator, mask: NDArray[np.bool_], wanted: int, log_aspect: float
) -> None:
    """Add blocks until `wanted` patches are hidden or no block fits any more."""
    for _ in range(wanted):
        left = wanted - int(mask.sum())
        if left <= 0 or not _add_block(rng, mask, left, log_aspect):
            return


def _add_block(
    rng: np.random.Generator, mask: NDArray[np.bool_], left: int, log_aspect: float
) -> bool:
    rows, columns = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(min(SMALLEST, left), left)
        aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        top, start = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = mask[top : top + height, start : start + width]
        if 0 < block.size - int(block.sum()) <= left:
            block[:] = True
            return True
    return False
