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


def open_session(
    data: bytes,
    name: str,
    precision: str,
    part: Part,
    threads: int,
    weights: Mapping[str, bytes] | None = None,
) -> Session:
    """Load a graph from bytes that were already checked.

    Args:
        data: an ONNX file.
        threads: worker threads inside an operator; 0 takes all cores.
        weights: content of the files that the graph names for its weights. No other file is read,
            whatever the graph says.

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
        import onnxruntime as ort

        super().__init__(name, "onnxruntime-cpu", precision, part)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: its warnings speak to its developers
        _only_these(options, weights, name, ort.__version__)
        self._weights = weights  # the engine may go on reading them where they lie
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
        self._session, self._weights = None, {}


def _only_these(options: Any, weights: Mapping[str, bytes], name: str, version: str) -> None:
    """Give the engine the files of weights; with a table of them, even an empty one, it opens no
    file itself: a graph could name any, and one loaded from memory is not tied to a folder.
    """
    give = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if give is not None:
        table = dict(weights) or {"": b""}
        give(list(table), list(table.values()), [len(data) for data in table.values()])
    elif weights:
        raise EnvironmentLacks(
            f"ONNX Runtime {version} cannot read weights beside the graph, as {name} has them",
            fix="pip install --upgrade onnxruntime",
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
