"""What is asked of an export: precisions, kinds of files, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tk.export.precision.calibrate import METHODS, MIN_IMAGES, Method
from tk.export.precision.search import BUILDS
from tk.export.tensorrt.flags import HARDWARE
from tk.runtime.errors import EnvironmentLacks, TkError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TARGETS = ("onnx", "tensorrt")

CALIBRATION = 64
"""Images that ranges are measured on; each costs three runs in float32."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an export.

    Attributes:
        precisions: of `PRECISIONS`, float32 first and always: plans are built again from its
            graph, and it is what every other one is compared with by eye.
        targets: of `TARGETS`; graphs are always written.
        fallback: search for what must stay in float32 when a precision fails the gate.
        builds: candidates that a search may make.
        method: of calibration.
        calibration: images that ranges are measured on.
        level: optimization level of TensorRT, 0 to 5.
        workspace: GPU memory of one layer while TensorRT builds, bytes; 0 leaves it to TensorRT.
        hardware: `none`, `same` or `ampere`, see `tensorrt.options.BuildOptions`.
        cache: folder of TensorRT's timing caches, None for none.
    """

    precisions: tuple[str, ...] = ("fp32",)
    targets: tuple[str, ...] = ("onnx",)
    fallback: bool = True
    builds: int = BUILDS
    method: Method = "percentile"
    calibration: int = CALIBRATION
    level: int = 3
    workspace: int = 0
    hardware: str = "none"
    cache: Path | None = None

    def __post_init__(self) -> None:
        precisions = _known("precision", self.precisions, PRECISIONS)
        object.__setattr__(self, "precisions", precisions)
        object.__setattr__(self, "targets", _known("target", self.targets, TARGETS))
        if self.hardware not in HARDWARE:
            raise TkError(f"unknown hardware {self.hardware!r}", expected=", ".join(HARDWARE))
        if self.calibration < MIN_IMAGES:
            raise TkError(
                "too few images to measure the ranges of int8",
                expected=f"at least {MIN_IMAGES}",
                found=str(self.calibration),
            )

    @property
    def plans(self) -> bool:
        """Whether TensorRT plans are asked for."""
        return "tensorrt" in self.targets

    @property
    def images_to_calibrate(self) -> int:
        """Images that ranges are measured on; 0 without int8."""
        return self.calibration if "int8" in self.precisions else 0

    def check_machine(self) -> None:
        """Say what this machine lacks for the request, before any work.

        Raises:
            EnvironmentLacks: plans are asked for, and TensorRT, a GPU or cuda-python is missing;
                or the GPU does not compute in a precision.
        """
        if not self.plans:
            return
        from tk.export.tensorrt.precision import check_gpu
        from tk.runtime.backends.tensorrt import library

        if lack := library.missing():
            raise EnvironmentLacks(
                "--to tensorrt cannot build plans on this machine",
                expected="TensorRT, cuda-python and an NVIDIA GPU: plans are built where they run",
                found=lack,
                fix="leave --to out here, and export once more on the machine with the GPU",
            )
        library.load()
        for precision in self.precisions:
            check_gpu(precision, library.the_gpu())


def words(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Read a comma list.

    Args:
        option: for the message.
        text: `fp32, fp16`.
        known: words that it may have.

    Raises:
        TkError: empty, or a word that is not known.
    """
    found = tuple(word for piece in text.split(",") if (word := piece.strip().lower()))
    if not found:
        raise TkError(f"{option} is empty", expected=", ".join(known))
    return _known(option, found, known)


def method_of(text: str) -> Method:
    """Read a calibration method.

    Raises:
        TkError: an unknown one.
    """
    for method in METHODS:
        if text.strip().lower() == method:
            return method
    raise TkError(f"unknown calibration method {text!r}", expected=", ".join(METHODS))


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The words in their own order, each once, the first one always."""
    if unknown := [word for word in given if word not in known]:
        raise TkError(f"unknown {what} {unknown[0]!r}", expected=", ".join(known))
    return tuple(word for word in known if word in given or word == known[0])
