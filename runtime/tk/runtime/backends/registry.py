"""The back ends by name, best first. A back end is a folder here with a `session.py`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from tk.runtime.errors import TkError


@dataclass(frozen=True)
class Backend:
    """One way to run an artifact.

    Attributes:
        name: as verdicts in `parity.json` spell it.
        device: `cpu` or `cuda`.
        kind: of the artifacts that it runs.
        module: has `missing() -> str` (what this machine lacks; "" when ready) and
            `open_session(data, name, precision, part, threads, weights) -> Session`.
        extra: the extra of `tk-vision` that brings it.
    """

    name: str
    device: str
    kind: str
    module: str
    extra: str

    def load(self) -> ModuleType:
        """Import the module; it imports its library only when asked for a session."""
        return importlib.import_module(self.module)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("onnxruntime-cpu", "cpu", "onnx", "tk.runtime.backends.onnxrt.session", "cpu"),
    )
}


def get_backend(name: str) -> Backend:
    """Look a back end up.

    Raises:
        TkError: unknown name; lists the valid ones.
    """
    if name not in BACKENDS:
        raise TkError(f"unknown back end {name!r}", expected=", ".join(BACKENDS))
    return BACKENDS[name]
