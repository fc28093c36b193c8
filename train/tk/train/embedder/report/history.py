"""Reading metrics.jsonl: series over the run and the figures of the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = Mapping[str, Any]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]

SPLITS = ("train", "val", "test")


def number(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def events(records: Sequence[Record], event: str | None) -> list[Record]:
    """Records of one event; None for the records of training steps."""
    return [record for record in records if record.get("event") == event]


def series(records: Sequence[Record], x: str, y: str) -> Series:
    """Values of `y` over `x`, without the records that lack one of them.

    Returns:
        x and y, (n,) float64 each.
    """
    pairs = [(number(record.get(x)), number(record.get(y))) for record in records]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    both = np.asarray(whole, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def best_of(records: Sequence[Record]) -> Record | None:
    """The record of the last time that a best value was found."""
    found = events(records, "best")
    return found[-1] if found else None


def figures_of_best(records: Sequence[Record]) -> Record:
    """Evaluation figures of the best weights: of train and val at that step, and of the test."""
    evals, tests = events(records, "eval"), events(records, "test")
    best = best_of(records)
    step = best.get("step") if best else None
    chosen = [one for one in evals if step is not None and one.get("step") == step] or evals
    return {**(chosen[-1] if chosen else {}), **(tests[-1] if tests else {})}


def supports(figures: Record, split: str) -> list[int]:
    """Number of crops of each class in a split; empty when the records do not say."""
    per_class = figures.get(f"{split}_per_class")
    if not isinstance(per_class, Mapping):
        return []
    found = [number(one.get("support")) for one in per_class.values() if isinstance(one, Mapping)]
    return [int(value) for value in found if value is not None]
