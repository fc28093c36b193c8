"""Schedules: pure functions of the step, so a resumed run needs no schedule state."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine wave from `start` (step 0) to `end` (step `steps`), constant afterwards."""
    share = 1.0 if step >= steps else max(step / steps, 0.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * share))


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, end: float = 0.0) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then a cosine to `end`.

    Step 0 of a warm-up of w steps has peak / w, step w - 1 has the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(step - warmup, steps - warmup, peak, end)
