"""The eleven tool classes and their drawings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tk.train.data.synth.drivers import (
    offset_screwdriver,
    phillips_screwdriver,
    slotted_screwdriver,
)
from tk.train.data.synth.paint import Part
from tk.train.data.synth.pliers import (
    combination_pliers,
    lineman_pliers,
    retaining_ring_pliers,
    side_cutters,
)
from tk.train.data.synth.wrenches import (
    adjustable_wrench,
    brace,
    oil_can_opener,
    open_end_wrench,
)

Drawing = Callable[[np.random.Generator], list[Part]]

TOOLS: dict[str, Drawing] = {
    "adjustable wrench": adjustable_wrench,
    "open-end wrench": open_end_wrench,
    "combination pliers": combination_pliers,
    "side cutters": side_cutters,
    "lineman pliers": lineman_pliers,
    "slotted screwdriver": slotted_screwdriver,
    "Phillips screwdriver": phillips_screwdriver,
    "offset screwdriver": offset_screwdriver,
    "brace": brace,
    "oil-can opener": oil_can_opener,
    "retaining-ring pliers": retaining_ring_pliers,
}
"""Class name to drawing; the order gives the COCO category ids 1..11."""
