"""The parity gate: the bytes that ship, against the float32 PyTorch model, on real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.export.model import ExportModel
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.registry import BACKENDS, Backend
from tk.runtime.errors import TkError
from tk.runtime.manifest import Artifact
from tk.runtime.parity.limits import OVER_ALL, Measure
from tk.runtime.parity.over_all import over_all, relieve
from tk.runtime.parity.rows import compare
from tk.runtime.progress import Progress, Silent, progress

PICTURES_ONE_BY_ONE = 8
"""Pictures of the thorough gate for a part that takes one picture per call."""


@dataclass(frozen=True)
class Verdict:
    """One figure of one pair (artifact, back end).

    Attributes:
        test: `parity` (against PyTorch), `batch invariance` (against itself, one by one), or
            `all images` (against PyTorch, over all of them together).
        batch: size of the free axis; for `all images` their number.
    """

    file: str
    backend: str
    part: str
    test: str
    batch: int
    measure: Measure


@dataclass(frozen=True)
class Refusal:
    """A back end of this machine that cannot run an artifact, and why: never used, never judged."""

    file: str
    backend: str
    why: str


@dataclass(frozen=True)
class Judgement:
    """What the gate found of some artifacts.

    Attributes:
        verdicts: figures.
        refusals: pairs without figures.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def __add__(self, other: Judgement) -> Judgement:
        return Judgement(self.verdicts + other.verdicts, self.refusals + other.refusals)

    def of(self, backend: str) -> list[Measure]:
        """Figures of one back end."""
        return [v.measure for v in self.verdicts if v.backend == backend]

    def backends(self) -> list[str]:
        """Back ends with figures, each once."""
        return list(dict.fromkeys(v.backend for v in self.verdicts))


@dataclass(frozen=True)
class _Case:
    batch: int
    inputs: Arrays
    expected: Arrays
    alone: bool  # whether each row is compared with itself in the batch too
    fresh: int  # pictures at its beginning that no other case with fresh pictures shows


class Reference:
    """What PyTorch answers to real images, for one part; computed once for many candidates.

    Args:
        model: the reference.
        name: of the part.
        canvases: (n, H, W, 3) uint8, real images on the model's canvas; or its `rows`.
        thorough: judge on all of them, and not only on what the largest batch takes.
    """

    def __init__(
        self, model: ExportModel, name: str, canvases: NDArray[Any], thorough: bool = False
    ) -> None:
        self.task, self.name, self.part = model.task, name, model.parts[name]
        self._free = self.part.spec.batch_axis
        self._one = self.part.spec.one_picture or not self._free
        # Neighbours are looked for among all pictures, so an embedder has to see them.
        plan = list(self._plan(canvases, thorough or self.task == "embedder"))
        self._cases: list[_Case] = []
        with progress(f"answers of PyTorch, {name}", len(plan)) as bar:
            for more, rows, alone, fresh in plan:
                inputs = self.part.feed(more, rows)
                self._cases.append(_Case(rows, inputs, self.part.run(inputs), alone, fresh))
                bar.advance()

    @property
    def steps(self) -> int:
        """How often `measure` advances its bar."""
        return len(self._cases)

    def _plan(
        self, canvases: NDArray[Any], thorough: bool
    ) -> Iterator[tuple[NDArray[Any], int, bool, int]]:
        """Pictures, rows, and `alone` and `fresh` of each case."""
        largest = self.part.spec.max_batch
        for batch in sorted({1, min(2, largest), largest} if self._free else {1}):
            fresh = (1 if self._one else min(batch, len(canvases))) if batch == largest else 0
            yield canvases, batch, batch > 1, fresh
        if not thorough:
            return
        step, end = (1, PICTURES_ONE_BY_ONE) if self._one else (largest, len(canvases))
        for start in range(step, min(end, len(canvases)), step):
            more = canvases[start : start + step]
            rows = largest if self._one and self._free else len(more)
            yield more, rows, False, len(more)

    def measure(self, session: Session, file: str, bar: Progress | None = None) -> list[Verdict]:
        """Compare a session with PyTorch and with itself.

        Args:
            session: of the part.
            file: for the verdicts.
            bar: advanced `steps` times.

        Raises:
            TkError: it fails while running, or gives outputs of other shapes.
        """
        verdicts: list[Verdict] = []

        def note(test: str, batch: int, measures: list[Measure]) -> None:
            for measure in measures:
                verdicts.append(Verdict(file, session.backend, self.name, test, batch, measure))

        def equal(expected: Arrays, found: Arrays) -> list[Measure]:
            return compare(self.task, self.name, expected, found, session.precision)

        together = over_all(self.task, self.name, session.precision)
        rows: list[tuple[int, list[Measure]]] = []
        bar = bar or Silent()
        for case in self._cases:
            found = session.run(case.inputs)
            rows.append((case.batch, equal(case.expected, found)))
            if together and case.fresh:
                new = len(next(iter(found.values()))) if self._one else case.fresh
                together.add(_first(case.expected, new), _first(found, new))
            if case.alone:
                alone = self._one_by_one(session, case.inputs)
                note("batch invariance", case.batch, equal(alone, found))
            bar.advance(note=session.backend)
        overall = together.measures() if together else []
        for batch, measures in rows:
            note("parity", batch, relieve(measures, overall))
        note(OVER_ALL, sum(case.fresh for case in self._cases), overall)
        return verdicts

    def _one_by_one(self, session: Session, inputs: Arrays) -> Arrays:
        """Run each row of the free axis alone and put the answers together."""
        spec = self.part.spec
        own = [tensor.name for tensor in spec.inputs if tensor.shape[:1] == (self._free,)]
        rows = [
            session.run({**inputs, **{name: inputs[name][row : row + 1] for name in own}})
            for row in range(len(inputs[own[0]]))
        ]
        return {t.name: np.concatenate([row[t.name] for row in rows]) for t in spec.outputs}


def _first(outputs: Arrays, rows: int) -> Arrays:
    return {name: array[:rows] for name, array in outputs.items()}


def judges(kind: str) -> list[Backend]:
    """Back ends of this machine for a kind of files."""
    return [b for b in BACKENDS.values() if b.kind == kind and not b.load().missing()]


def judge_artifact(
    reference: Reference,
    artifact: Artifact,
    data: bytes,
    weights: bytes = b"",
    bar: Progress | None = None,
) -> Judgement:
    """Judge a file on every back end of this machine that runs its kind.

    Args:
        reference: of its part.
        artifact: what the manifest will say of it.
        data: its content.
        weights: content of the file beside it, if it has one.
        bar: advanced `reference.steps` times for each of `judges`.
    """
    found = Judgement()
    for backend in judges(artifact.kind):
        module = backend.load()
        try:
            if reason := module.refusal(artifact.facts):
                raise TkError(reason)
            opened = module.open_session(
                data,
                artifact.file,
                artifact.precision,
                reference.part.spec,
                0,
                {artifact.weights: weights} if artifact.weights else {},
                facts=artifact.facts,
            )
            with opened as session:
                found.verdicts.extend(reference.measure(session, artifact.file, bar))
        except TkError as error:
            found.refusals.append(Refusal(artifact.file, backend.name, error.what))
    return found


def summarise(verdicts: Sequence[Verdict]) -> list[str]:
    """One line per file, back end, test and metric: the worst value over batches."""
    worst: dict[tuple[str, str, str, str, str], Measure] = {}
    batches: dict[tuple[str, str, str, str, str], list[int]] = {}
    for verdict in verdicts:
        measure = verdict.measure
        key = (verdict.file, verdict.backend, verdict.test, measure.output, measure.metric)
        batches.setdefault(key, []).append(verdict.batch)
        known = worst.get(key)
        if known is None or measure.badness > known.badness:
            worst[key] = measure
    return [
        f"{'ok  ' if measure.passed else 'FAIL'} {file}: {output} on {backend}, {test}, {measure}, "
        f"{'images' if test == OVER_ALL else 'batches'} {sorted(set(batches[key]))}"
        for key, measure in worst.items()
        for file, backend, test, output, _ in [key]
    ]
