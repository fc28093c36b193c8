"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part


def missing() -> str:
    """Say what this machine lacks to run this back end, "" when nothing."""
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(installed) == 2:
        # Both wheels install the same folder: the one installed last wins and the GPU may vanish.
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    if util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'tk-vision[cpu]'"
    return ""


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def open_session(data: bytes, name: str, precision: str, part: Part, threads: int) -> Session:
    """Load a graph from bytes that were already checked.

    Args:
        data: an ONNX file.
        threads: worker threads inside an operator; 0 takes all cores.

    Raises:
        EnvironmentLacks: onnxruntime is not installed, or twice.
        TkError: ONNX Runtime refuses the graph.
    """
    if lack := missing():
        raise EnvironmentLacks(f"cannot run {name}", found=lack)
    return OnnxRuntimeSession(data, name, precision, part, threads)


class OnnxRuntimeSession(Session):
    """A graph in ONNX Runtime's CPU execution provider."""

    def __init__(self, data: bytes, name: str, precision: str, part: Part, threads: int) -> None:
        import onnxruntime as ort

        super().__init__(name, "onnxruntime-cpu", precision, part)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: its warnings speak to its developers
        try:
            self._session: Any = ort.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ORT raises several unrelated exception types
            raise TkError(
                f"ONNX Runtime {ort.__version__} refuses {name}: {_first_line(error)}",
                fix="export the model again; tk verify tells whether the bundle is intact",
            ) from error

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        names = [spec.name for spec in self.part.outputs]
        try:
            values = self._session.run(names, dict(inputs))
        except Exception as error:
            raise TkError(f"{self.name} failed while running: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def _close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
