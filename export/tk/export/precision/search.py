"""Find the least that must stay in float32 for a gate to pass.

Knows nothing of graphs: blocks are names, `build` makes a candidate, `passes` judges it. A search
takes as many builds as its budget and no more, and every answer is a set that was tried and passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tk.runtime.errors import CheckFailed
from tk.runtime.parity.limits import Measure

BUILDS = 24
"""Builds of a search; an engine takes minutes each."""

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Block:
    """Nodes that stay in float32 together.

    Attributes:
        name: for the report.
        nodes: names of the nodes.
    """

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """A verdict on one candidate.

    Attributes:
        passed: the gate's word.
        worst: how much of its allowance the worst figure takes: 0 equal, 1 at the threshold.
        what: that figure in words.
    """

    passed: bool
    worst: float
    what: str = ""


@dataclass(frozen=True)
class Trial:
    """One build of a search.

    Attributes:
        kept: names of the blocks in float32.
        judged: how it did.
    """

    kept: tuple[str, ...]
    judged: Judged


@dataclass(frozen=True)
class Result:
    """The end of a search.

    Attributes:
        kept: blocks that must stay in float32, in the order in which they were given.
        log: what was tried, in order.
        settled: whether each kept block was shown to be needed; else the builds ran out.
    """

    kept: tuple[Block, ...]
    log: tuple[Trial, ...]
    settled: bool

    @property
    def nodes(self) -> frozenset[str]:
        """Names of all nodes that stay in float32."""
        return frozenset(name for block in self.kept for name in block.nodes)

    def to_json(self) -> dict[str, Any]:
        """For the parity report."""
        return {
            "kept": [{"block": block.name, "nodes": list(block.nodes)} for block in self.kept],
            "settled": self.settled,
            "tried": log_json(self.log),
        }


class SearchFailed(CheckFailed):
    """Even with every block in float32 the gate said no.

    Attributes:
        log: what was tried.
    """

    def __init__(self, what: str, log: Sequence[Trial], **more: str) -> None:
        super().__init__(what, **more)
        self.log = tuple(log)


def log_json(log: Sequence[Trial]) -> list[dict[str, Any]]:
    """One entry per build; figures that are no numbers are null, as JSON demands."""
    return [
        {
            "float32": list(trial.kept),
            "passed": trial.judged.passed,
            "worst": trial.judged.worst if math.isfinite(trial.judged.worst) else None,
            "figure": trial.judged.what,
        }
        for trial in log
    ]


def judge(measures: Sequence[Measure]) -> Judged:
    """Sum up the figures of a gate."""
    worst = max(measures, key=_share_of_allowance)
    text = f"{worst.output} {worst}"
    passed = all(measure.passed for measure in measures)
    return Judged(passed, _share_of_allowance(worst), text)


def _share_of_allowance(measure: Measure) -> float:
    if not math.isfinite(measure.value):
        return math.inf
    if measure.threshold is None:
        return 0.0
    if measure.metric.endswith("difference"):
        return measure.value / max(measure.threshold, 1e-12)
    return (1 - measure.value) / max(1 - measure.threshold, 1e-12)


def search(
    blocks: Sequence[Block],
    build: Callable[[frozenset[str]], Candidate],
    passes: Callable[[Candidate], Judged],
    *,
    suspicion: Mapping[str, float] | None = None,
    builds: int = BUILDS,
) -> Result:
    """Find a small set of blocks that must stay in float32.

    First none, then all. Then, most suspicious first, the shortest row of blocks that passes is
    found by doubling and halving: its last block is needed. The rest of the row is searched again
    with that block kept, until what is kept passes by itself. At the end each kept block is
    released once more, for blocks may help or harm each other. With d needed blocks of n this
    takes about d log2(n) builds.

    Args:
        blocks: disjoint groups of nodes, in the order of the graph.
        build: makes a candidate with these nodes in float32.
        passes: judges a candidate.
        suspicion: block -> how likely it is to blame (`suspects.block_errors`); without it the
            order of the graph counts.
        builds: at most, at least 2.

    Raises:
        SearchFailed: all blocks in float32 fail too.
    """
    return _Search(blocks, build, passes, suspicion or {}, max(2, builds)).run()


class _OutOfBuilds(Exception):
    """The budget is spent."""


class _Search(Generic[Candidate]):
    def __init__(
        self,
        blocks: Sequence[Block],
        build: Callable[[frozenset[str]], Candidate],
        passes: Callable[[Candidate], Judged],
        suspicion: Mapping[str, float],
        builds: int,
    ) -> None:
        self.blocks, self.build, self.passes, self.left = blocks, build, passes, builds
        places = range(len(blocks))
        self.order = sorted(places, key=lambda i: (-suspicion.get(blocks[i].name, 0.0), i))
        self.known: dict[frozenset[int], bool] = {}
        self.log: list[Trial] = []
        self.best = frozenset(places)

    def run(self) -> Result:
        if self._fits(()):
            return self._result(settled=True)
        if not self._fits(self.order):
            raise SearchFailed(
                "the gate fails even with every block in float32: the precision is not to blame",
                self.log,
                found=self.log[-1].judged.what,
                fix="report this model; what stays in the low precision between blocks is rounding",
            )
        try:
            self._grow()
            self._release()
        except _OutOfBuilds:
            return self._result(settled=False)
        return self._result(settled=True)

    def _grow(self) -> None:
        needed: list[int] = []
        row = list(self.order)
        while row and not self._fits(needed):
            count = self._shortest(needed, row)
            needed.append(row[count - 1])
            row = row[: count - 1]

    def _shortest(self, needed: Collection[int], row: Sequence[int]) -> int:
        """How many blocks of a row must be kept besides the needed ones; the whole row passes."""
        low, high = 0, 1  # `low` fails
        while high < len(row) and not self._fits([*needed, *row[:high]]):
            low, high = high, high * 2
        high = min(high, len(row))
        while high - low > 1:
            middle = (low + high) // 2
            if self._fits([*needed, *row[:middle]]):
                high = middle
            else:
                low = middle
        return high

    def _release(self) -> None:
        """Let go what can be let go, the least suspicious first, until nothing can."""
        changed = True
        while changed:
            changed = False
            for place in reversed(self.order):
                if place in self.best:
                    changed |= self._fits(self.best - {place})

    def _fits(self, kept: Collection[int]) -> bool:
        """Whether a set of blocks in float32 passes; each set is built once."""
        key = frozenset(kept)
        if key not in self.known:
            if self.left == 0:
                raise _OutOfBuilds
            self.left -= 1
            chosen = [self.blocks[place] for place in sorted(key)]
            nodes = frozenset(name for block in chosen for name in block.nodes)
            judged = self.passes(self.build(nodes))
            self.known[key] = judged.passed
            self.log.append(Trial(tuple(block.name for block in chosen), judged))
            if judged.passed and self._weight(key) <= self._weight(self.best):
                self.best = key
        return self.known[key]

    def _weight(self, key: frozenset[int]) -> tuple[int, int]:
        return sum(len(self.blocks[place].nodes) for place in key), len(key)

    def _result(self, *, settled: bool) -> Result:
        kept = tuple(self.blocks[place] for place in sorted(self.best))
        return Result(kept, tuple(self.log), settled)
