"""Check a bundle where it runs: hashes, then parity with the probe, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Session
from tk.runtime.backends.registry import BACKENDS, PRECISIONS, Backend
from tk.runtime.bundle import MANIFEST, PARITY, PROBE, Bundle
from tk.runtime.choice import Pair, Wish, read_wish, wish_of_part
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.files import locked, read_json, sha256_file, write_json
from tk.runtime.manifest import Artifact
from tk.runtime.parity.limits import Measure
from tk.runtime.parity.over_all import over_all, relieve
from tk.runtime.parity.parts import run_parts
from tk.runtime.parity.rows import compare

Probe = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class VerifyRow:
    """Verdict of one (precision, back end) on this machine.

    Attributes:
        precision, backend: the pair.
        files: what was run, part -> file of the bundle.
        judged: whether the gate of `tk export` passed it; only then anything uses it.
        skipped: why it did not run here; "" when it ran.
        measures: part -> figures.
    """

    precision: str
    backend: str
    files: dict[str, str] = field(default_factory=dict)
    judged: bool = True
    skipped: str = ""
    measures: dict[str, list[Measure]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether everything that ran was equal enough."""
        return all(measure.passed for rows in self.measures.values() for measure in rows)


def verify(
    path: Path,
    threads: int = 0,
    *,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
) -> tuple[Bundle, list[VerifyRow]]:
    """Verify a bundle: every hash, then every (precision, back end) that this machine can run.

    Args:
        path: the bundle.
        threads: for back ends on the CPU; 0 takes all cores.
        device, precision, backend: leave the others out; as for `Bundle.session`.

    Returns:
        The bundle, and a row per (precision, back end) for which it holds files.

    Raises:
        TkError: not a bundle. CheckFailed: a file was changed.
        EnvironmentLacks: no back end of this machine can run it.
    """
    bundle = Bundle.open(path)
    wish = read_wish(device, precision, backend)
    rows = judge(bundle, wish, threads)
    if not rows:
        raise TkError(
            f"bundle {path.name} holds no files for {wish}",
            found=", ".join(sorted({item.file for item in bundle.manifest.artifacts})),
            fix=f"leave the options out; plans come from: tk plan {path}",
        )
    if all(row.skipped for row in rows):
        raise EnvironmentLacks(
            f"nothing in bundle {path.name} runs on this machine",
            found="; ".join(f"{row.precision} on {row.backend}: {row.skipped}" for row in rows),
            fix="tk doctor",
        )
    return bundle, rows


def judge(bundle: Bundle, wish: Wish, threads: int = 0) -> list[VerifyRow]:
    """Compare with the probe every (precision, back end) that a wish allows.

    Args:
        bundle: opened; its files may be newer than its manifest on disk.
        wish: leaves the others out.
        threads: for back ends on the CPU; 0 takes all cores.

    Returns:
        A row for each of which there are files.
    """
    with np.load(bundle.path / PROBE, allow_pickle=False) as archive:
        probe = {name: archive[name] for name in archive.files}
    return [
        _verify_pairs(bundle, probe, precision, backend, chosen, wish, threads)
        for precision in PRECISIONS
        for backend in BACKENDS.values()
        if (chosen := _chosen(bundle, precision, backend, wish))
    ]


def _chosen(bundle: Bundle, precision: str, backend: Backend, wish: Wish) -> dict[str, Pair]:
    """The pair that each part would run on; empty when no part has the precision."""
    artifacts = bundle.manifest.artifacts
    if wish.precision not in ("auto", precision) or not wish.takes(backend):
        return {}
    if not any(a.precision == precision and a.kind == backend.kind for a in artifacts):
        return {}
    chosen: dict[str, Pair] = {}
    for part in bundle.manifest.parts:
        own = wish_of_part(replace(wish, precision=precision), part, artifacts)
        pairs = [p for p in bundle.pairs(part) if p.backend is backend and own.allows(p)]
        if not pairs:
            return {}
        # Of several plans of one part the one for this machine.
        chosen[part] = next((pair for pair in pairs if not pair.refusal(wish.device)), pairs[0])
    return chosen


def _verify_pairs(
    bundle: Bundle,
    probe: Probe,
    precision: str,
    backend: Backend,
    chosen: Mapping[str, Pair],
    wish: Wish,
    threads: int,
) -> VerifyRow:
    row = VerifyRow(
        precision,
        backend.name,
        {part: pair.artifact.file for part, pair in chosen.items()},
        all(pair.passed for pair in chosen.values()),
    )
    reasons = [reason for pair in chosen.values() if (reason := pair.refusal(wish.device))]
    if failed := [pair.artifact.file for pair in chosen.values() if pair.passed is False]:
        reasons.append(f"{', '.join(failed)} failed the gate when it was exported")
    if reasons:
        return replace(row, skipped=reasons[0])
    sessions: dict[str, Session] = {}
    try:
        for part, pair in chosen.items():
            sessions[part] = bundle.open_pair(pair, device=wish.device, threads=threads)
        measures = _measure(bundle.manifest.task, sessions, probe, precision)
        if not row.judged:  # the gate, which looks at the largest batch, never saw it
            _add(
                measures,
                _measure(bundle.manifest.task, sessions, _filled(probe, sessions), precision),
            )
        return replace(row, measures=measures)
    except EnvironmentLacks:
        raise
    except TkError as error:
        if row.judged:  # it ran where it was exported, so this is a finding
            raise
        return replace(row, skipped=str(error).replace("\n", " "))
    finally:
        for session in sessions.values():
            session.close()


def _measure(
    task: str, sessions: Mapping[str, Session], probe: Probe, precision: str
) -> dict[str, list[Measure]]:
    """Figures by part; of the parts whose answers the probe holds."""
    inputs = {name.removeprefix("input/"): v for name, v in probe.items() if "input/" in name}
    measures = {}
    for part, found in _run(task, sessions, inputs).items():
        prefix = f"output/{part}/"
        expected = {n.removeprefix(prefix): v for n, v in probe.items() if n.startswith(prefix)}
        if expected:
            own = {name: found[name] for name in expected}
            same = {name: _rows(v, len(own[name])) for name, v in expected.items()}
            rows, overall = compare(task, part, same, own, precision), []
            if together := over_all(task, part, precision):
                together.add(same, own)
                overall = together.measures()
            measures[part] = relieve(rows, overall) + overall
    return measures


def _run(task: str, sessions: Mapping[str, Session], inputs: Probe) -> dict[str, Probe]:
    """Part -> outputs. The probe of an embedder may have more pictures than its largest batch."""
    if task != "embedder" or "image" not in inputs:
        return run_parts(task, sessions, inputs)
    step = min(session.part.max_batch for session in sessions.values())
    images = inputs["image"]
    runs = [
        run_parts(task, sessions, {**inputs, "image": images[start : start + step]})
        for start in range(0, max(1, len(images)), step)
    ]
    return {
        part: {name: np.concatenate([run[part][name] for run in runs]) for name in outputs}
        for part, outputs in runs[0].items()
    }


def _filled(probe: Probe, sessions: Mapping[str, Session]) -> Probe:
    """The probe with its rows repeated to the largest batch of the part that takes them."""
    largest = {
        f"input/{spec.name}": session.part.max_batch
        for session in sessions.values()
        for spec in session.part.inputs
        if isinstance(spec.shape[0], str)
    }
    return {
        name: _rows(value, largest[name]) if name in largest else value
        for name, value in probe.items()
    }


def _rows(array: NDArray[Any], count: int) -> NDArray[Any]:
    """The rows of an array over and over, until there are `count`."""
    return array[np.arange(count) % len(array)] if len(array) else array


def _add(measures: dict[str, list[Measure]], more: Mapping[str, list[Measure]]) -> None:
    """Keep the worse of each two figures; a probe cut to few rows has none over all images."""
    for part, rows in more.items():
        others = {(measure.output, measure.metric): measure for measure in rows}
        measures[part] = [
            max(
                measure,
                others.get((measure.output, measure.metric), measure),
                key=lambda m: m.badness,
            )
            for measure in measures[part]
        ]


def record(
    bundle: Bundle, rows: Iterable[VerifyRow], artifacts: Sequence[Artifact] = ()
) -> list[str]:
    """Keep the verdicts of pairs that passed here and that the gate had never judged.

    Other files of the bundle stay as they are. The manifest is replaced last, under a lock: a
    reader sees the old bundle or the new one, or is told in between that a file was changed.

    Args:
        bundle: as it lies on disk.
        rows: of `judge`.
        artifacts: files to add to the manifest; they lie in the folder already.

    Returns:
        What was added, `FILE on BACKEND`.

    Raises:
        CheckFailed: somebody changed the bundle meanwhile.
    """
    new = [
        (file, row.backend)
        for row in rows
        if row.measures and row.passed and not row.judged
        for file in row.files.values()
    ]
    with locked(bundle.path):
        current = Bundle.open(bundle.path)
        added = [pair for pair in dict.fromkeys(new) if pair not in current.verdicts]
        if not added and not artifacts:
            return []
        if current.manifest != bundle.manifest:
            raise CheckFailed(
                f"bundle {bundle.path.name} was changed meanwhile", fix="tk verify once more"
            )
        parity = read_json(bundle.path / PARITY)
        parity["verdicts"] += [
            {"file": file, "backend": backend, "passed": True, "by": "tk verify"}
            for file, backend in added
        ]
        write_json(bundle.path / PARITY, parity)
        files = {**current.manifest.files, PARITY: sha256_file(bundle.path / PARITY)}
        manifest = current.manifest.with_artifacts([*current.manifest.artifacts, *artifacts], files)
        write_json(bundle.path / MANIFEST, manifest.to_json())
    return [f"{file} on {backend}" for file, backend in added]
