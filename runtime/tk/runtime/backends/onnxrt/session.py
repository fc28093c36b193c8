"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.onnxrt.library import first_line, load_graph, missing_package
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part

NAME = "onnxruntime-cpu"


def missing() -> str:
    """Say what this machine lacks to run this back end, "" when nothing."""
    return missing_package()


def refusal(facts: Mapping[str, Any], device: int = 0) -> str:
    """Say why a graph with these facts cannot run here, "" when it can."""
    return missing()


def open_session(
    data: bytes,
    name: str,
    precision: str,
    part: Part,
    threads: int,
    weights: Mapping[str, bytes] | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    device: int = 0,
) -> Session:
    """Load a graph from bytes that were already checked.

    Args:
        data: an ONNX file.
        threads: worker threads inside an operator; 0 takes all cores.
        weights: content of the files that the graph names for its weights. No other file is read,
            whatever the graph says.
        facts, device: of other back ends.

    Raises:
        EnvironmentLacks: onnxruntime is not installed, or twice.
        TkError: ONNX Runtime refuses the graph.
    """
    if lack := missing():
        raise EnvironmentLacks(f"cannot run {name}", found=lack)
    return OnnxRuntimeSession(data, name, precision, part, threads, weights or {})


class OnnxRuntimeSession(Session):
    """A graph in ONNX Runtime's CPU execution provider."""

    def __init__(
        self,
        data: bytes,
        name: str,
        precision: str,
        part: Part,
        threads: int,
        weights: Mapping[str, bytes],
    ) -> None:
        super().__init__(name, NAME, precision, part)
        self._weights = weights  # the engine may go on reading them where they lie
        self._session: Any = load_graph(data, name, threads, weights, ["CPUExecutionProvider"])

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        names = [spec.name for spec in self.part.outputs]
        try:
            values = self._session.run(names, dict(inputs))
        except Exception as error:
            raise TkError(f"{self.name} failed while running: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def _close(self) -> None:
        self._session, self._weights = None, {}
