"""The timing of benchmarks, on a clock that only the candidates move: figures in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat

import numpy as np
import pytest

from tk.benchmarks.latency import Clock, Plan, Samples, duration, measure


class Fake:
    """A clock, and candidates that take the seconds they are told to."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.calls: list[str] = []

    @property
    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, cpu=lambda: self.cpu)

    def candidate(
        self, name: str, seconds: Iterator[float], threads: float = 1.0
    ) -> Callable[[], None]:
        def call() -> None:
            took = next(seconds)
            self.wall += took
            self.cpu += threads * took
            self.calls.append(name)

        return call


def test_measure__every_call_counts_and_percentiles_are_exact() -> None:
    fake = Fake()
    # 20 equal calls of warm-up, then 1..100 ms: the last is an outlier that nobody clips.
    times = chain(repeat(0.05, 20), (i / 1000 for i in range(1, 100)), [9.0])
    plan = Plan(samples=100, seconds=1e9)
    found = measure({"a": fake.candidate("a", times, threads=2.0)}, plan, fake.clock)["a"]
    assert found.warm_up == 20 and found.stable
    expected = np.asarray([*(i / 1000 for i in range(1, 100)), 9.0])
    np.testing.assert_allclose(found.wall, expected, atol=1e-9)
    figures = found.figures()
    assert figures["n"] == 100
    for share in (50, 90, 95, 99):
        assert figures[f"p{share}"] == pytest.approx(np.percentile(expected, share))
    assert figures["mean"] == pytest.approx(expected.mean())
    assert figures["cv"] == pytest.approx(expected.std(ddof=1) / expected.mean())
    centre = np.median(expected)
    assert figures["mad"] == pytest.approx(np.median(np.abs(expected - centre)))
    assert figures["cpu_p50"] == pytest.approx(2 * centre)


def test_warm_up__goes_on_until_medians_agree() -> None:
    fake = Fake()
    slow = chain(repeat(1.0, 10), repeat(0.5, 10), repeat(0.3, 10), repeat(0.29, 999))
    plan = Plan(samples=5, seconds=1e9, window_seconds=1e9)
    found = measure(
        {"a": fake.candidate("a", slow), "b": fake.candidate("b", repeat(0.1))}, plan, fake.clock
    )
    # 0.3 and 0.29 are the first that differ by less than 5 %: after four windows.
    assert found["a"].warm_up == found["b"].warm_up == 40
    assert set(np.round(found["a"].wall, 6)) == {0.29} and found["a"].stable


def test_warm_up__is_bounded_and_says_that_it_was_not_stable() -> None:
    fake = Fake()
    growing = (1.2**i for i in range(10_000))
    plan = Plan(samples=3, seconds=1e9, least=3, window=4, windows=5, window_seconds=1e99)
    found = measure({"a": fake.candidate("a", growing)}, plan, fake.clock)["a"]
    assert (found.warm_up, found.stable, len(found.wall)) == (20, False, 3)


def test_warm_up__windows_of_slow_calls_are_short() -> None:
    fake = Fake()
    plan = Plan(samples=3, least=3, window=10, window_seconds=2.0)
    found = measure({"a": fake.candidate("a", repeat(5.0))}, plan, fake.clock)["a"]
    assert found.warm_up == 4  # two windows of two calls


def test_measure__time_ends_it_but_not_before_the_least() -> None:
    fake = Fake()
    plan = Plan(samples=1000, seconds=10.0, least=4)
    assert len(measure({"a": fake.candidate("a", repeat(1.0))}, plan, fake.clock)["a"].wall) == 10
    assert len(measure({"a": fake.candidate("a", repeat(9.0))}, plan, fake.clock)["a"].wall) == 4


def test_measure__candidates_take_turns_in_changing_order() -> None:
    fake = Fake()
    names = ("a", "b", "c")
    plan = Plan(samples=90, seconds=1e9, windows=1, window_seconds=1e9)
    measure({n: fake.candidate(n, cycle([0.1, 0.2])) for n in names}, plan, fake.clock)
    rounds = [tuple(fake.calls[i : i + 3]) for i in range(0, len(fake.calls), 3)]
    assert all(sorted(one) == list(names) for one in rounds) and len(rounds) == 100
    assert len(set(rounds)) == 6  # every order occurs
    again = Fake()
    measure({n: again.candidate(n, cycle([0.1, 0.2])) for n in names}, plan, again.clock)
    assert again.calls == fake.calls  # and the seed fixes it


def test_measure__a_plan_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        measure({}, Plan(samples=0))


def test_figures__one_sample_has_no_spread() -> None:
    figures = Samples(wall=[0.5], cpu=[0.4]).figures()
    assert (figures["p50"], figures["p99"], figures["cv"], figures["mad"]) == (0.5, 0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.12e-7, "812 ns"),
        (3.9e-6, "3.90 us"),
        (21.13e-6, "21.1 us"),
        (0.9996e-3, "1.00 ms"),
        (0.0434, "43.4 ms"),
        (1.5, "1.50 s"),
        (0.0, "0.00 ns"),
    ],
)
def test_duration__three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
