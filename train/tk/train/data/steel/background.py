"""Patches of good strips: as large as those of defects, so that size says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tk.runtime.errors import TkError
from tk.runtime.preprocess import Image
from tk.train.data.steel.prepared import Box, DefectImage

_TRIES = 24
"""Places that are looked at for one patch; beside the strip there is nothing but black."""
_DARK = 20
"""Grey level of a pixel that is no steel."""


def plan_background(
    images: Sequence[DefectImage], sides: Sequence[int], count: int, most: int, seed: int
) -> dict[str, list[list[Box]]]:
    """Choose places for patches without a defect.

    Args:
        images: of the data set; those with a defect, also one too small for a box, are passed over.
        sides: of the patches of defects, pixels; theirs are drawn from these.
        count: patches.
        most: patches per image.
        seed: of every choice.

    Returns:
        image name -> for each of its patches, places (x0, y0, x1, y1) to try in turn.

    Raises:
        TkError: too few images without a defect.
    """
    good = [image for image in images if not image.defects and not image.small]
    if count > len(good) * most:
        raise TkError(
            f"not enough images without a defect for --background {count}",
            expected=f"{-(-count // most)} of them at --max-per-image {most}",
            found=str(len(good)),
            fix=f"--background {len(good) * most}, or a larger --max-per-image",
        )
    rng = np.random.default_rng([seed, 5])
    order = rng.permutation(len(good))
    plan: dict[str, list[list[Box]]] = {}
    for number in range(count):
        image = good[order[number % len(good)]]
        side = min(int(sides[int(rng.integers(len(sides)))]), image.width, image.height)
        lefts = rng.integers(0, image.width - side + 1, _TRIES).tolist()
        tops = rng.integers(0, image.height - side + 1, _TRIES).tolist()
        places = [(x, y, x + side, y + side) for x, y in zip(lefts, tops, strict=True)]
        plan.setdefault(image.name, []).append(places)
    return plan


def first_lit(image: Image, places: Sequence[Box]) -> Box | None:
    """The first place that is steel for the most part; None if all lie beside the strip.

    Args:
        image: (H, W, 3) uint8 RGB.
        places: inside the image.
    """
    for x0, y0, x1, y1 in places:
        if (image[y0:y1, x0:x1, 0] > _DARK).mean() > 0.5:
            return x0, y0, x1, y1
    return None
