"""The one way in which benchmarks time things: warm, by turns, nothing clipped.

Calls before the timed ones go on until they are stable: engines choose kernels, fill caches and
grow arenas in the first. Then all candidates take turns, in another random order every round, so
that what else the machine does falls on all alike. Percentiles are of all calls; the spread is
stated.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

from tk.benchmarks.timing import percentile

Candidate = Callable[[], object]
"""What is timed: one call; what it returns is dropped."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        samples: timed rounds; each calls every candidate once.
        seconds: after which no further round begins, once there are `least`.
        least: timed rounds, however long they take.
        window: rounds of a warm-up window, and `window_seconds` after which it ends earlier, with
            two rounds.
        tolerance: medians of two windows that follow each other may differ by this share.
        windows: after so many of them the timed rounds begin anyway, and the samples say so.
        seed: of the order.
    """

    samples: int = 200
    seconds: float = 30.0
    least: int = 10
    window: int = 10
    window_seconds: float = 2.0
    tolerance: float = 0.05
    windows: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Clock:
    """What time is read from.

    Attributes:
        wall: seconds, steady.
        cpu: CPU seconds of the process, all threads.
    """

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


@dataclass
class Samples:
    """Calls of one candidate.

    Attributes:
        wall, cpu: seconds of each timed call, in order.
        warm_up: calls before them.
        stable: whether the last two windows of the warm-up agreed.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    warm_up: int = 0
    stable: bool = False

    def figures(self) -> dict[str, Any]:
        """Percentiles and spread, seconds; nothing is clipped.

        Returns:
            `n`, `p50`, `p90`, `p95`, `p99`, `mean` of wall time, its coefficient of variation `cv`
            (deviation over mean) and median absolute deviation `mad`, `cpu_p50`; `warm_up` and
            `stable`.
        """
        centre, mean = percentile(self.wall, 50), fmean(self.wall)
        return {
            "n": len(self.wall),
            **{f"p{share}": percentile(self.wall, share) for share in (50, 90, 95, 99)},
            "mean": mean,
            "cv": stdev(self.wall) / mean if len(self.wall) > 1 and mean else 0.0,
            "mad": median(abs(value - centre) for value in self.wall),
            "cpu_p50": percentile(self.cpu, 50),
            "warm_up": self.warm_up,
            "stable": self.stable,
        }


def measure(
    candidates: Mapping[str, Candidate], plan: Plan | None = None, clock: Clock | None = None
) -> dict[str, Samples]:
    """Time candidates by turns.

    Args:
        candidates: name -> one call; each makes its own input ready before, not in the call.
        plan: how much; `Plan()` without.
        clock: for tests.

    Returns:
        Name -> its samples; all have equally many.

    Raises:
        ValueError: the plan has no timed round, or no window of two rounds.
    """
    plan, clock = plan or Plan(), clock or Clock()
    if plan.samples < 1 or plan.least < 1 or plan.window < 2 or plan.windows < 1:
        raise ValueError(f"nothing to measure by {plan}")
    order = random.Random(plan.seed)
    found = {name: Samples() for name in candidates}
    _warm_up(candidates, found, plan, clock, order)
    started = clock.wall()
    for done in range(plan.samples):
        if done >= plan.least and clock.wall() - started >= plan.seconds:
            break
        for name, (wall, cpu) in _round(candidates, order, clock).items():
            found[name].wall.append(wall)
            found[name].cpu.append(cpu)
    return found


def _round(
    candidates: Mapping[str, Candidate], order: random.Random, clock: Clock
) -> dict[str, tuple[float, float]]:
    """Call each candidate once, in random order: name -> wall and CPU seconds."""
    names = list(candidates)
    order.shuffle(names)
    times = {}
    for name in names:
        call = candidates[name]
        cpu, wall = clock.cpu(), clock.wall()
        call()
        wall, cpu = clock.wall() - wall, clock.cpu() - cpu
        times[name] = wall, cpu
    return times


def _warm_up(
    candidates: Mapping[str, Candidate],
    found: dict[str, Samples],
    plan: Plan,
    clock: Clock,
    order: random.Random,
) -> None:
    """Call all until the medians of two windows agree for each, or there were enough windows."""
    before: dict[str, float] = {}
    for _ in range(plan.windows):
        window: dict[str, list[float]] = {name: [] for name in candidates}
        started = clock.wall()
        for done in range(plan.window):
            if done >= 2 and clock.wall() - started >= plan.window_seconds:
                break
            for name, (wall, _) in _round(candidates, order, clock).items():
                window[name].append(wall)
        now = {name: median(values) for name, values in window.items()}
        for name, samples in found.items():
            samples.warm_up += len(window[name])
            samples.stable = name in before and _agree(before[name], now[name], plan.tolerance)
        if all(samples.stable for samples in found.values()):
            return
        before = now


def _agree(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance * max(one, other)


def duration(seconds: float) -> str:
    """A time with three digits and the unit that fits: ns, us, ms or s."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        value = seconds * factor
        if value < 999.5:
            return f"{_three_digits(value)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"
