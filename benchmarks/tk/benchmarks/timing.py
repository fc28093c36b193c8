"""Small pieces that benchmarks of whole chains share: runs, stages, percentiles, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Run:
    """One timed pass of one chain over all pictures.

    Attributes:
        seconds: wall time, from the first picture to the closed result file.
        stages: stage -> seconds, summed over pictures.
        images: seconds per picture, in input order.
        engine: seconds inside inference engines; None where that is not known.
        peak_rss: bytes above the resident memory at the start of the pass; None where the system
            does not say.
        cpu: CPU seconds of the process, all threads.
        engine_cpu: those of them inside inference engines; None where that is not known.
    """

    seconds: float
    stages: dict[str, float]
    images: list[float]
    engine: float | None
    peak_rss: int | None
    cpu: float = float("nan")
    engine_cpu: float | None = None


class Stopwatch:
    """Adds up seconds by stage."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the body to one stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def percentile(values: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile of all values, nothing clipped; NaN when there are none.

    Args:
        values: any order.
        share: 0..100.
    """
    return float(np.percentile(values, share)) if len(values) else float("nan")


class PeakMemory:
    """Peak of this process's resident memory since `reset`, as Linux counts it."""

    def __init__(self) -> None:
        self._start = 0

    def reset(self) -> None:
        """Begin to measure."""
        self._start = 0
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present
        except OSError:
            return  # another system, or not allowed: `above_start` then says None
        self._start = _status_bytes("VmRSS")

    def above_start(self) -> int | None:
        """Bytes between the peak since `reset` and the level then; None where not known."""
        return max(0, _status_bytes("VmHWM") - self._start) if self._start else None


def _status_bytes(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(key + ":")]
    return int(values[0]) * 1024 if values else 0
