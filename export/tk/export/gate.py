"""The parity gate: the bytes that ship, against the float32 PyTorch model, on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tk.export.graph import Graph
from tk.export.model import ExportModel, ExportPart
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.registry import BACKENDS
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.manifest import Artifact
from tk.runtime.parity import Measure, compare


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


def run_gate(
    model: ExportModel,
    graphs: dict[str, tuple[Artifact, Graph]],
    canvases: NDArray[np.uint8],
) -> list[Verdict]:
    """Measure every pair that this machine can run.

    Args:
        model: the reference.
        graphs: part -> artifact and its content.
        canvases: (n, H, W, 3) uint8, real images on the model's canvas.

    Raises:
        CheckFailed: no back end here can run a graph, so nothing could be proved.
    """
    verdicts: list[Verdict] = []
    for part_name, (artifact, graph) in graphs.items():
        ran = False
        refused = []
        for backend in BACKENDS.values():
            module = backend.load()
            if backend.kind != artifact.kind:
                continue
            if reason := module.refusal(artifact.facts):
                refused.append(f"{backend.name}: {reason}")
                continue
            spec = model.parts[part_name].spec
            try:
                opened = module.open_session(
                    graph.data, artifact.file, artifact.precision, spec, 0, outside(artifact, graph)
                )
            except TkError as error:  # a pair that cannot run is not judged, hence never used
                refused.append(f"{backend.name}: {error.what}")
                continue
            with opened as session:
                verdicts += _measure(model, part_name, artifact, session, canvases)
            ran = True
        if not ran:
            raise CheckFailed(
                f"nothing on this machine can run {artifact.file}: parity was not proved",
                found="; ".join(refused),
                fix="pip install 'tk-vision[cpu]'",
            )
    return verdicts


def outside(artifact: Artifact, graph: Graph) -> dict[str, bytes]:
    """Weights of a graph that lie in a file of their own, by its name."""
    return {artifact.weights: graph.weights} if artifact.weights else {}


def _measure(
    model: ExportModel,
    part_name: str,
    artifact: Artifact,
    session: Session,
    canvases: NDArray[np.uint8],
) -> list[Verdict]:
    part = model.parts[part_name]
    verdicts: list[Verdict] = []

    def note(test: str, batch: int, expected: Arrays, found: Arrays) -> None:
        for measure in compare(model.task, part_name, expected, found, artifact.precision):
            verdicts.append(
                Verdict(artifact.file, session.backend, part_name, test, batch, measure)
            )

    free = _batch_axis(part)
    for batch in sorted({1, 2, part.spec.max_batch} if free else {1}):
        inputs = part.feed(canvases, batch)
        found = session.run(inputs)
        note("parity", batch, part.run(inputs), found)
        if batch > 1:
            note("batch invariance", batch, _one_by_one(part, free, session, inputs), found)
    return verdicts


def _one_by_one(part: ExportPart, free: str, session: Session, inputs: Arrays) -> Arrays:
    """Run each row of the free axis alone and put the answers together."""
    own = [spec.name for spec in part.spec.inputs if spec.shape[:1] == (free,)]
    rows = []
    for row in range(len(inputs[own[0]])):
        rows.append(session.run({**inputs, **{name: inputs[name][row : row + 1] for name in own}}))
    return {spec.name: np.concatenate([r[spec.name] for r in rows]) for spec in part.spec.outputs}


def _batch_axis(part: ExportPart) -> str:
    """Name of the free axis that the outputs run along; "" for a part that has none."""
    axis = part.spec.outputs[0].shape[0]
    return axis if isinstance(axis, str) else ""


def summarise(verdicts: Sequence[Verdict]) -> list[str]:
    """One line per part, back end, test and metric: the worst value over batches."""
    worst: dict[tuple[str, str, str, str, str], Measure] = {}
    batches: dict[tuple[str, str, str, str, str], list[int]] = {}
    for verdict in verdicts:
        measure = verdict.measure
        key = (verdict.part, verdict.backend, verdict.test, measure.output, measure.metric)
        batches.setdefault(key, []).append(verdict.batch)
        known = worst.get(key)
        if known is None or _worse(measure, known):
            worst[key] = measure
    return [
        f"{'ok  ' if measure.passed else 'FAIL'} {part}/{output} on {backend}: {test}, {metric} "
        f"{measure.value:.6g} (needs {measure.threshold:g}), batches {batches[key]}"
        for key, measure in worst.items()
        for part, backend, test, output, metric in [key]
    ]


def _worse(a: Measure, b: Measure) -> bool:
    if not np.isfinite(a.value):
        return True
    return a.value > b.value if a.metric.endswith("difference") else a.value < b.value
