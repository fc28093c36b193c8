"""A bundle: the folder that `tk export` writes for one model and the runtime loads.

Nothing in it is read before its hash matches the manifest, and nothing is pickled. A session is
made only from a pair (artifact, back end) that passed the parity gate: the same graph can drift
differently on different back ends, so the verdict belongs to the pair.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tk.runtime.backends.base import Session
from tk.runtime.choice import (
    Pair,
    nothing_proved,
    nothing_runs,
    rank_pairs,
    read_wish,
    why,
    wish_of_part,
)
from tk.runtime.devices import Device
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.files import read_json, sha256_file, what_is_there
from tk.runtime.manifest import Artifact, Manifest, manifest_from_json

MANIFEST, PARITY, PROBE = "manifest.json", "parity.json", "probe.npz"


class FileChanged(CheckFailed):
    """A file is not the one that the manifest tells the hash of; nothing is taken in its place."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest, and the verdicts of the parity gate.

    Attributes:
        path: the folder.
        manifest: checked against its own hash.
        verdicts: (file, back end) -> passed, from `parity.json`.
    """

    path: Path
    manifest: Manifest
    verdicts: dict[tuple[str, str], bool]

    @classmethod
    def open(cls, path: Path, task: str | None = None) -> Bundle:
        """Open a bundle and check every file against its hash.

        Args:
            path: a folder with a `manifest.json`.
            task: the task that the caller needs, e.g. `detector`.

        Raises:
            TkError: not a bundle, another schema, or another task.
            CheckFailed: a file is missing or was changed.
        """
        if not (path / MANIFEST).is_file():
            raise TkError(
                f"{path} is not a bundle",
                expected=f"a folder with {MANIFEST}, as `tk export` writes it",
                found=what_is_there(path),
                fix=f"tk export CHECKPOINT {path} --images DIR",
            )
        manifest = manifest_from_json(read_json(path / MANIFEST), path)
        if task is not None and manifest.task != task:
            raise TkError(f"bundle {path} is for another task", expected=task, found=manifest.task)
        for problem in damaged_files(path, manifest):
            raise CheckFailed(
                f"bundle {path.name} is damaged: {problem}",
                fix="export the model again, or take the bundle from its source once more",
            )
        return cls(path, manifest, _verdicts(read_json(path / PARITY)))

    @property
    def sha256(self) -> str:
        """Identity of the model: the hash of its float32 graphs, whatever was added later."""
        digest = hashlib.sha256()
        for artifact in sorted(self.manifest.artifacts, key=lambda item: item.file):
            if artifact.kind == "onnx" and artifact.precision == "fp32":
                digest.update(bytes.fromhex(artifact.sha256))
                if artifact.weights:
                    digest.update(bytes.fromhex(self.manifest.files[artifact.weights]))
        return digest.hexdigest()

    def pairs(self, part: str) -> list[Pair]:
        """All pairs (artifact, back end) of a part, judged or not, best first.

        Raises:
            TkError: no such part.
        """
        self._check_part(part)
        return rank_pairs(self.manifest.artifacts, part, self.verdicts)

    def session(
        self,
        part: str = "model",
        *,
        device: str = "auto",
        precision: str = "auto",
        backend: str = "auto",
        threads: int = 0,
    ) -> Session:
        """Open the best pair (artifact, back end) that passed the gate and runs here.

        A plan can fail to load though its facts fit. Unless its back end was asked for, the next
        best pair is taken then, with a warning. A graph that fails is an error: it would move to
        the CPU.

        Args:
            part: name of the part.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            precision: `auto`, or one that the bundle holds; a part without it runs in float32.
            backend: `auto`, or one of `registry.BACKENDS`, with or without its device.
            threads: for back ends on the CPU; 0 takes all cores.

        Returns:
            The session; its `why` says in one line why this pair was taken.

        Raises:
            TkError: no such pair; says what is there and how to make it. Or the back end refuses
                the file, and nothing else may run.
            FileChanged: a file was changed since the bundle was opened.
            EnvironmentLacks: there is one, but this machine lacks its back end.
        """
        pairs, asked = self.pairs(part), read_wish(device, precision, backend)
        wish = wish_of_part(asked, part, self.manifest.artifacts)
        proved = [pair for pair in pairs if pair.passed and wish.allows(pair)]
        if not proved:
            raise nothing_proved(self.path, part, wish, pairs)
        refused: dict[int, str] = {}
        failed: TkError | None = None
        for place, pair in enumerate(proved):
            if reason := pair.refusal(wish.device):
                refused[place] = reason
                if not pair.backend.load().missing():  # the library is here, the file is not for it
                    warnings.warn(f"{pair.artifact.file} is not used: {reason}", stacklevel=2)
                continue
            try:
                session = self.open_pair(pair, device=wish.device, threads=threads)
            except FileChanged:
                raise
            except TkError as error:
                if wish.backend != "auto" or pair.artifact.kind != "plan":
                    raise
                refused[place] = error.what
                warnings.warn(f"{pair.artifact.file} is not used: {error}", stacklevel=2)
                # Its traceback would hold the plan's GPU memory while the next one is opened.
                failed = failed or error.with_traceback(None)
                continue
            session.why = why(pair, wish, proved, refused)
            return session
        raise failed or nothing_runs(self.path.name, proved, refused)

    def open_pair(self, pair: Pair, *, device: Device | None = None, threads: int = 0) -> Session:
        """Open one pair, whatever the gate said of it: to judge it.

        Args:
            pair: of `pairs`.
            device: which GPU; the first when it is None.
            threads: for back ends on the CPU; 0 takes all cores.

        Raises:
            FileChanged: a file was changed since the bundle was opened.
            EnvironmentLacks: this machine lacks something.
            TkError: the back end refuses the file.
        """
        artifact = pair.artifact
        index = device.index if device else 0
        # Before a byte is read: a plan of another machine must not come near its library.
        if reason := pair.backend.load().refusal(artifact.facts, index):
            raise EnvironmentLacks(
                f"cannot run {self.path.name}/{artifact.file} on {pair.backend.name}", found=reason
            )
        session: Session = pair.backend.load().open_session(
            self._read(artifact.file, artifact.sha256),
            f"{self.path.name}/{artifact.file}",
            artifact.precision,
            self.manifest.parts[artifact.part],
            threads,
            self._weights(artifact),
            facts=artifact.facts,
            device=index,
        )
        return session

    def _check_part(self, part: str) -> None:
        if part not in self.manifest.parts:
            raise TkError(
                f"bundle {self.path.name} has no part {part!r}",
                expected=", ".join(self.manifest.parts),
            )

    def _weights(self, artifact: Artifact) -> dict[str, bytes]:
        """Weights that lie beside a graph, by the name that the graph calls them."""
        file = artifact.weights
        if not file:
            return {}
        if file not in self.manifest.files:  # only files of that list were checked
            raise CheckFailed(
                f"bundle {self.path.name} is damaged: its manifest has no hash of {file}",
                fix="export the model again",
            )
        return {file: self._read(file, self.manifest.files[file])}

    def _read(self, file: str, sha256: str) -> bytes:
        # Hash the very bytes that go to the engine: the file may have changed since `open`.
        data = (self.path / file).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise FileChanged(f"bundle {self.path.name} is damaged: {file} was changed")
        return data


def damaged_files(path: Path, manifest: Manifest) -> Iterator[str]:
    """Yield one sentence per file of the bundle that is missing or differs from its hash."""
    hashes = {artifact.file: artifact.sha256 for artifact in manifest.artifacts}
    for file, expected in {**hashes, **manifest.files}.items():
        # A manifest from elsewhere must not make us read outside its folder.
        if Path(file).is_absolute() or ".." in Path(file).parts:
            yield f"{file} lies outside the bundle"
        elif not (path / file).is_file():
            yield f"{file} is missing"
        elif sha256_file(path / file) != expected:
            yield f"{file} was changed (its SHA-256 differs from the manifest)"


def _verdicts(parity: Any) -> dict[tuple[str, str], bool]:
    return {(row["file"], row["backend"]): bool(row["passed"]) for row in parity["verdicts"]}
