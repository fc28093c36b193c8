"""One generated strip: a plate, marks that are no defect, defects of some kinds, a photograph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.cracks import cracks
from tk.train.data.steel.marks import MARKS
from tk.train.data.steel.pits import pits
from tk.train.data.steel.plate import SHAPE, Field, Plate, photograph, roll_plate
from tk.train.data.steel.scale import scale
from tk.train.data.steel.scratches import scratches

Draw = Callable[[np.random.Generator, Plate, Field], NDArray[np.bool_]]
DEFECTS: dict[int, Draw] = {1: pits, 2: cracks, 3: scratches, 4: scale}

SEVERSTAL_MASKS = (897, 247, 5150, 801)
"""Masks of each class in the competition's `train.csv`."""
_WITHOUT = 5902 / 12568
"""Share of its pictures without a defect."""
_TWO_KINDS = 427 / 6666
"""Share of its pictures with a defect that have another kind as well."""


@dataclass(frozen=True, eq=False)
class Strip:
    """A rendered strip.

    Attributes:
        jpeg: the file, 1600x256 pixels, three equal channels.
        masks: ClassId -> (256, 1600) bool, for the kinds that it has.
    """

    jpeg: bytes
    masks: dict[int, NDArray[np.bool_]]


def render_strip(seed: int, index: int, *, balanced: bool = False) -> Strip:
    """Render strip `index` of a seeded series; the same numbers give the same bits.

    Args:
        seed: of the series, 0 or greater.
        index: of the strip, 0 or greater; strips are independent of one another.
        balanced: every kind as often as the others; else as often as in the competition.
    """
    rng = np.random.default_rng([seed, index])
    plate = roll_plate(rng)
    gain = np.ones(SHAPE, np.float32)
    for _ in range(int(rng.poisson(1.6))):
        MARKS[int(rng.integers(len(MARKS)))](rng, plate, gain)
    masks = {kind: DEFECTS[kind](rng, plate, gain) for kind in draw_kinds(rng, balanced=balanced)}
    return Strip(photograph(rng, plate.levels * gain), masks)


def draw_kinds(rng: np.random.Generator, *, balanced: bool) -> list[int]:
    """ClassIds of the defects of one strip, ascending; none for a good one."""
    if rng.random() < _WITHOUT:
        return []
    counts = np.ones(len(DEFECTS)) if balanced else np.asarray(SEVERSTAL_MASKS, np.float64)
    several = 1 + int(rng.random() < _TWO_KINDS)
    chosen = rng.choice(list(DEFECTS), several, replace=False, p=counts / counts.sum())
    return sorted(chosen.tolist())
