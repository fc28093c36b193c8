"""Schedules of DINO (arXiv:2104.14294, section 3.2): pure functions of the optimizer step."""

from __future__ import annotations

from tk.train.run.schedule import cosine


def cosine_schedule(
    step: int, steps: int, start: float, end: float, *, warmup: int = 0, warmup_start: float = 0.0
) -> float:
    """Linear warm-up from `warmup_start` to `start`, then half a cosine wave to `end`.

    Equal to `cosine_scheduler` of the published code, which makes all values of a run at once:
    value `warmup - 1` of a warm-up is `start`, and the last step stops one short of `end`.

    Args:
        step: from 0.
        steps: of the whole run; later steps stay at `end`.
        warmup: steps of the warm-up, fewer than `steps`.
    """
    if step < warmup:
        share = step / (warmup - 1) if warmup > 1 else 1.0
        return warmup_start + (start - warmup_start) * share
    return cosine(step - warmup, steps - warmup, start, end)


def linear_warmup(step: int, warmup: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `warmup - 1`, and `end` from there on."""
    if step >= warmup - 1:
        return end
    return start + (end - start) * step / (warmup - 1)
