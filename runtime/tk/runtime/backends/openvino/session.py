"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from importlib import metadata, util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.openvino.outside import names_files
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part

NAME = "openvino-cpu"
TELEMETRY = "openvino_telemetry"

HINTS = {"bf16": ("BF16", "bf16"), "fp16": ("FP16", "f16")}
"""Precision of the artifact -> what the processor must be able to do, and the hint then.

Float32 for the rest, also between int8 kernels. It is always said: left to itself OpenVINO computes
float32 graphs in bfloat16 where the processor can, and parity is lost without a word. Asked for
half precision where the processor has only bfloat16, OpenVINO (2026.4) takes that, which is three
bits shorter: boxes of a detector whose fp16 file is sound overlapped by 0.56.
"""


def missing() -> str:
    """Say what this machine lacks to run this back end, "" when nothing."""
    if util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'tk-vision[openvino]'"
    return ""


def refusal(facts: Mapping[str, Any], device: int = 0) -> str:
    """Say why a graph with these facts cannot run here, "" when it can."""
    if facts.get("weights"):
        return "its weights lie beside the graph, which OpenVINO would read unchecked"
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
        threads: worker threads; 0 takes all cores.
        weights: content of the files that the graph names for its weights. OpenVINO would read
            them, and any other file, by itself and unchecked, so such graphs are refused.
        facts, device: of other back ends.

    Raises:
        EnvironmentLacks: openvino is not installed.
        TkError: OpenVINO refuses the graph, or its weights lie beside it.
    """
    if lack := missing():
        raise EnvironmentLacks(f"cannot run {name}", found=lack)
    if weights or names_files(data):
        raise TkError(
            f"OpenVINO is not given weights that lie beside the graph, as {name} has them",
            fix="run it on onnxruntime-cpu",
        )
    return OpenVinoSession(data, name, precision, part, threads)


class OpenVinoSession(Session):
    """A graph in OpenVINO's CPU plugin."""

    def __init__(self, data: bytes, name: str, precision: str, part: Part, threads: int) -> None:
        super().__init__(name, NAME, precision, part)
        try:
            self._request: Any = _compiled(data, part, precision, threads).create_infer_request()
        except TkError:
            raise
        except Exception as error:  # OpenVINO raises plain RuntimeError, and pybind11 its own
            raise TkError(
                f"OpenVINO {metadata.version('openvino')} refuses {name}: {_reason(error)}",
                fix="run it on onnxruntime-cpu, or export it with --opset 17",
            ) from error

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        fed = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
        try:
            self._request.infer(fed, share_inputs=True)
            # The tensors are the engine's own memory, and the next run writes into them.
            return {
                spec.name: self._request.get_tensor(spec.name).data.copy()
                for spec in self.part.outputs
            }
        except Exception as error:
            raise TkError(f"{self.name} failed while running: {_reason(error)}") from error

    def _close(self) -> None:
        self._request = None


@functools.cache
def _core() -> Any:
    """The one core of this process, which stays until its end.

    When the last core goes, OpenVINO (2026.4) unloads its plugins, and the process may die of
    SIGSEGV much later, in code that has nothing to do with it: seen in 4 of 6 runs of a test file
    that closes sessions before other work, none with plugins that stay.
    """
    return _library().Core()


def _library() -> Any:
    """OpenVINO, without what reports its use.

    `import openvino` sends an event to its vendor's statistics, unless the package for that is not
    there (2026.4, `openvino/tools/ovc/__init__.py`). Whoever inspects parts has not agreed to it,
    so the package is out of sight while OpenVINO is imported.
    """
    seen = sys.modules.get(TELEMETRY)
    if seen is None:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # how Python says: not there
    try:
        return importlib.import_module("openvino")  # it carries no types
    finally:
        if seen is None:
            del sys.modules[TELEMETRY]


def _compiled(data: bytes, part: Part, precision: str, threads: int) -> Any:
    core = _core()
    model = core.read_model(data)
    _must_have(model.inputs, [spec.name for spec in part.inputs], "input")
    _must_have(model.outputs, [spec.name for spec in part.outputs], "output")
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _arithmetic(core, precision),
        "PERFORMANCE_HINT": "LATENCY",
        # Cores are shared with other stages and processes; a pinned thread waits for its own.
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(model, "CPU", settings)


def _arithmetic(core: Any, precision: str) -> str:
    """The hint for a precision: what the file says where this processor can, else float32."""
    needed, hint = HINTS.get(precision, ("", "f32"))
    able: list[str] = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return hint if needed in able else "f32"


def _must_have(ports: Any, wanted: list[str], kind: str) -> None:
    found = {name for port in ports for name in port.get_names()}
    if lost := [name for name in wanted if name not in found]:
        raise TkError(
            f"the graph has no {kind} {lost[0]!r}",
            expected=", ".join(wanted),
            found=", ".join(sorted(found)),
        )


def _reason(error: Exception) -> str:
    """The line of OpenVINO's report that says what is wrong; the rest is its source tree."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return " ".join((telling or lines or [type(error).__name__])[:2])[:400]
