"""From timed passes to the figures of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from tk.benchmarks.reference_chain import STAGES
from tk.benchmarks.timing import Run, percentile

SIDES = ("sequential", "batched", "tk")
REFERENCES = SIDES[:2]
"""Chains in PyTorch, which tk is measured against."""


def summarise(runs: dict[str, list[Run]], images: int) -> dict[str, Any]:
    """Turn raw samples into the figures of the table.

    Args:
        runs: side -> its passes; equal numbers, taken by turns.
        images: pictures per pass.

    Returns:
        `rows`: per stage, and for the total with and without `encode`: milliseconds per picture of
        each side (median over passes) and how many times faster tk is than each reference;
        `ratio_range` (and `ratio_range_without_encode`) of the total over pairs of passes, per
        reference; per side `images_per_second`, `p50_ms`, `p90_ms`, `cpu_ms` and `peak_rss_mb`;
        `efficiency` and `overhead` of tk, 0..1.
    """
    rows = [_row(stage, runs, images, _of_stage(stage)) for stage in STAGES]
    rows.append(_row("total", runs, images, lambda run: run.seconds))
    rows.append(_row("total without encode", runs, images, without_encode))
    own = runs["tk"]
    return {
        "rows": rows,
        "ratio_range": {side: _range(runs, side, lambda run: run.seconds) for side in REFERENCES},
        "ratio_range_without_encode": {
            side: _range(runs, side, without_encode) for side in REFERENCES
        },
        "efficiency": median((run.engine or 0.0) / run.seconds for run in own),
        "overhead": median(1 - (run.engine_cpu or 0.0) / run.cpu for run in own),
        "engine_ms": median((run.engine or 0.0) for run in own) / images * 1e3,
        "sides": {side: _side(passes, images) for side, passes in runs.items()},
    }


def _of_stage(stage: str) -> Callable[[Run], float]:
    return lambda run: run.stages[stage]


def without_encode(run: Run) -> float:
    """Wall seconds of a pass less those of writing masks and JSON."""
    return run.seconds - run.stages["encode"]


def _range(
    runs: dict[str, list[Run]], reference: str, value: Callable[[Run], float]
) -> tuple[float, float]:
    """Least and largest ratio of reference and tk over pairs of passes."""
    ratios = [value(a) / value(b) for a, b in zip(runs[reference], runs["tk"], strict=True)]
    return min(ratios), max(ratios)


def _row(
    name: str, runs: dict[str, list[Run]], images: int, value: Callable[[Run], float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": name}
    for side in SIDES:
        row[f"{side}_ms"] = median(value(run) for run in runs[side]) / images * 1e3
    for side in REFERENCES:
        row[f"over_{side}"] = row[f"{side}_ms"] / row["tk_ms"] if row["tk_ms"] else float("nan")
    return row


def _side(runs: Sequence[Run], images: int) -> dict[str, Any]:
    samples = [seconds * 1e3 for run in runs for seconds in run.images]
    peaks = [run.peak_rss for run in runs if run.peak_rss is not None]
    return {
        "images_per_second": images / median(run.seconds for run in runs),
        "p50_ms": percentile(samples, 50),
        "p90_ms": percentile(samples, 90),
        "samples": len(samples),
        "cpu_ms": median(run.cpu for run in runs) / images * 1e3,
        "peak_rss_mb": max(peaks) / 1e6 if peaks else None,
    }
