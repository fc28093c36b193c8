"""The parity gate: the bytes that ship, against the float32 PyTorch model, on real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.export.model import ExportModel, ExportPart
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.registry import BACKENDS
from tk.runtime.errors import TkError
from tk.runtime.manifest import Artifact
from tk.runtime.parity import Measure, compare

PICTURES_ONE_BY_ONE = 8
"""Pictures of the thorough gate for a part that takes one picture per call."""


@dataclass(frozen=True)
class Verdict:
    """One figure of one pair (artifact, back end).

    Attributes:
        test: `parity` (against PyTorch) or `batch invariance` (against itself, one by one).
        batch: size of the free axis.
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
        self._free = _batch_axis(self.part)
        self._cases = list(self._make(canvases, thorough))

    def _make(self, canvases: NDArray[Any], thorough: bool) -> Iterator[_Case]:
        largest = self.part.spec.max_batch
        for batch in sorted({1, 2, largest} if self._free else {1}):
            yield self._case(canvases, batch, batch > 1)
        if not thorough:
            return
        one = any(spec.shape[:1] == (1,) for spec in self.part.spec.inputs) or not self._free
        step, end = (1, PICTURES_ONE_BY_ONE) if one else (largest, len(canvases))
        for start in range(step, min(end, len(canvases)), step):
            more = canvases[start : start + step]
            rows = largest if one and self._free else len(more)
            yield self._case(more, rows, False)

    def _case(self, canvases: NDArray[Any], batch: int, alone: bool) -> _Case:
        inputs = self.part.feed(canvases, batch)
        return _Case(batch, inputs, self.part.run(inputs), alone)

    def measure(self, session: Session, file: str) -> list[Verdict]:
        """Compare a session with PyTorch and with itself.

        Raises:
            TkError: it fails while running, or gives outputs of other shapes.
        """
        verdicts: list[Verdict] = []

        def note(test: str, batch: int, expected: Arrays, found: Arrays) -> None:
            for measure in compare(self.task, self.name, expected, found, session.precision):
                verdicts.append(Verdict(file, session.backend, self.name, test, batch, measure))

        for case in self._cases:
            found = session.run(case.inputs)
            note("parity", case.batch, case.expected, found)
            if case.alone:
                rows = self._one_by_one(session, case.inputs)
                note("batch invariance", case.batch, rows, found)
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


def judge_artifact(
    reference: Reference, artifact: Artifact, data: bytes, weights: bytes = b""
) -> Judgement:
    """Judge a file on every back end of this machine that runs its kind.

    Args:
        reference: of its part.
        artifact: what the manifest will say of it.
        data: its content.
        weights: content of the file beside it, if it has one.
    """
    found = Judgement()
    for backend in BACKENDS.values():
        if backend.kind != artifact.kind:
            continue
        module = backend.load()
        if module.missing():
            continue  # not a back end of this machine
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
                found.verdicts.extend(reference.measure(session, artifact.file))
        except TkError as error:
            found.refusals.append(Refusal(artifact.file, backend.name, error.what))
    return found


def _batch_axis(part: ExportPart) -> str:
    """Name of the free axis that the outputs run along; "" for a part that has none."""
    axis = part.spec.outputs[0].shape[0]
    return axis if isinstance(axis, str) else ""


def summarise(verdicts: Sequence[Verdict]) -> list[str]:
    """One line per file, back end, test and metric: the worst value over batches."""
    worst: dict[tuple[str, str, str, str, str], Measure] = {}
    batches: dict[tuple[str, str, str, str, str], list[int]] = {}
    for verdict in verdicts:
        measure = verdict.measure
        key = (verdict.file, verdict.backend, verdict.test, measure.output, measure.metric)
        batches.setdefault(key, []).append(verdict.batch)
        known = worst.get(key)
        if known is None or _worse(measure, known):
            worst[key] = measure
    return [
        f"{'ok  ' if measure.passed else 'FAIL'} {file}: {output} on {backend}, {test}, {metric} "
        f"{measure.value:.6g} (needs {measure.threshold:g}), batches {sorted(set(batches[key]))}"
        for key, measure in worst.items()
        for file, backend, test, output, metric in [key]
    ]


def _worse(a: Measure, b: Measure) -> bool:
    if not np.isfinite(a.value):
        return True
    return a.value > b.value if a.metric.endswith("difference") else a.value < b.value
