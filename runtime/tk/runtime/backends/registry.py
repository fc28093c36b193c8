"""The back ends by name, and which (back end, precision) is taken first.

A back end is a folder here with a `session.py`, whose functions are the same everywhere:
`missing() -> str` says what this machine lacks, `refusal(facts, device) -> str` why one artifact
cannot run here, both "" when nothing stands in the way and both without reading the artifact;
`open_session(data, name, precision, part, threads, weights, facts=, device=)` opens it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from tk.runtime.errors import TkError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""What a file may hold."""


@dataclass(frozen=True)
class Backend:
    """One way to run an artifact.

    Attributes:
        name: as verdicts in `parity.json` and `Session.backend` spell it.
        device: `cpu` or `cuda`.
        kind: of the artifacts that it runs.
        module: see the head of this file.
        extra: the extra of `tk-vision` that brings it.
        typed: whether it computes each node of a half precision file in the type that the file
            gives it. OpenVINO takes one precision for the whole of such a file, or float32.
    """

    name: str
    device: str
    kind: str
    module: str
    extra: str
    typed: bool = True

    def load(self) -> ModuleType:
        """Import the module; it imports its library only when asked for a session."""
        return importlib.import_module(self.module)

    def answers_to(self, name: str) -> bool:
        """Whether a user means it by `auto`, its name, or its name without the device."""
        return name in ("auto", self.name, self.name.removesuffix(f"-{self.device}"))


_HERE = "tk.runtime.backends"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("tensorrt", "cuda", "plan", f"{_HERE}.tensorrt.session", "gpu"),
        Backend("onnxruntime-cuda", "cuda", "onnx", f"{_HERE}.onnxrt_cuda.session", "gpu"),
        Backend(
            "openvino-cpu", "cpu", "onnx", f"{_HERE}.openvino.session", "openvino", typed=False
        ),
        Backend("onnxruntime-cpu", "cpu", "onnx", f"{_HERE}.onnxrt.session", "cpu"),
    )
}

PREFERENCE: tuple[tuple[str, str], ...] = (
    # A GPU computes half floats at many times the rate of float32. int8 of a transformer is often
    # no faster there (NVIDIA/TensorRT#4273), and ONNX Runtime runs Q/DQ nodes on it one by one.
    ("tensorrt", "fp16"),
    ("tensorrt", "bf16"),
    ("tensorrt", "int8"),
    ("onnxruntime-cuda", "fp16"),
    ("onnxruntime-cuda", "bf16"),
    ("tensorrt", "fp32"),
    ("onnxruntime-cuda", "fp32"),
    ("onnxruntime-cuda", "int8"),
    # ViT-S on two cores at a fixed batch, ms per picture: int8 14 (OpenVINO) and 19 (ONNX Runtime),
    # bf16 17 (OpenVINO), fp32 24 and 29, fp16 32 (it computes in float32 between casts). Batches of
    # the annotator vary: the compact models in float32 take OpenVINO 1.2 times the CPU time of ONNX
    # Runtime at a shape seen before and 1.7 to 2.7 times at a new one, hence the order of fp32.
    ("openvino-cpu", "int8"),
    ("onnxruntime-cpu", "int8"),
    ("openvino-cpu", "bf16"),
    ("onnxruntime-cpu", "fp32"),
    ("openvino-cpu", "fp32"),
    ("openvino-cpu", "fp16"),
    ("onnxruntime-cpu", "fp16"),
    ("onnxruntime-cpu", "bf16"),
)
"""(back end, precision), the one that is expected to be fastest first."""


def rank(backend: str, precision: str) -> int:
    """Place in `PREFERENCE`; what it does not name comes last."""
    pair = (backend, precision)
    return PREFERENCE.index(pair) if pair in PREFERENCE else len(PREFERENCE)


def get_backend(name: str) -> Backend:
    """Look a back end up.

    Raises:
        TkError: unknown name; lists the valid ones.
    """
    if name not in BACKENDS:
        raise TkError(f"unknown back end {name!r}", expected=", ".join(BACKENDS))
    return BACKENDS[name]


def check_names(backend: str, precision: str) -> None:
    """Refuse words that name no back end or precision.

    Args:
        backend: `auto`, a name, or a name without its device (`onnxruntime`, `openvino`).
        precision: `auto` or one of `PRECISIONS`.

    Raises:
        TkError: another word; lists the valid ones.
    """
    if not any(item.answers_to(backend) for item in BACKENDS.values()):
        raise TkError(f"unknown back end {backend!r}", expected=", ".join(("auto", *BACKENDS)))
    if precision not in ("auto", *PRECISIONS):
        raise TkError(f"unknown precision {precision!r}", expected=", ".join(("auto", *PRECISIONS)))
