"""Check a bundle where it runs: hashes, then parity with the probe, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tk.runtime.backends.registry import BACKENDS, Backend
from tk.runtime.bundle import PROBE, Bundle
from tk.runtime.errors import EnvironmentLacks
from tk.runtime.parity import Measure, compare, run_parts


@dataclass(frozen=True)
class VerifyRow:
    """Verdict of one (precision, back end) on this machine.

    Attributes:
        precision, backend: the pair.
        skipped: why it could not run here; "" when it ran.
        measures: part -> figures.
    """

    precision: str
    backend: str
    skipped: str
    measures: dict[str, list[Measure]]

    @property
    def passed(self) -> bool:
        """Whether everything that ran was equal enough."""
        return all(measure.passed for rows in self.measures.values() for measure in rows)


def verify(path: Path, threads: int = 0) -> tuple[Bundle, list[VerifyRow]]:
    """Verify a bundle.

    Raises:
        TkError: not a bundle. CheckFailed: a file was changed.
        EnvironmentLacks: no back end of this machine can run it.
    """
    bundle = Bundle.open(path)
    with np.load(path / PROBE, allow_pickle=False) as archive:
        probe = {name: archive[name] for name in archive.files}
    precisions = sorted({artifact.precision for artifact in bundle.manifest.artifacts})
    rows = [
        _verify_pair(bundle, probe, precision, backend, threads)
        for precision in precisions
        for backend in BACKENDS.values()
    ]
    if all(row.skipped for row in rows):
        raise EnvironmentLacks(
            f"nothing in bundle {path.name} runs on this machine",
            found="; ".join(f"{row.backend}: {row.skipped}" for row in rows),
            fix="tk doctor",
        )
    return bundle, rows


def _verify_pair(
    bundle: Bundle,
    probe: dict[str, np.ndarray],  # type: ignore[type-arg]
    precision: str,
    backend: Backend,
    threads: int,
) -> VerifyRow:
    if lack := backend.load().missing():
        return VerifyRow(precision, backend.name, lack, {})
    manifest = bundle.manifest
    sessions = {
        part: bundle.session(part, device=backend.device, precision=precision, threads=threads)
        for part in manifest.parts
    }
    inputs = {name.removeprefix("input/"): v for name, v in probe.items() if "input/" in name}
    outputs = run_parts(manifest.task, sessions, inputs)
    measures = {}
    for part, found in outputs.items():
        prefix = f"output/{part}/"
        expected = {n.removeprefix(prefix): v for n, v in probe.items() if n.startswith(prefix)}
        if expected:
            own = {name: found[name] for name in expected}
            measures[part] = compare(manifest.task, part, expected, own, precision)
    for session in sessions.values():
        session.close()
    return VerifyRow(precision, backend.name, "", measures)
