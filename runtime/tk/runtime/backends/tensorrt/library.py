"""Find TensorRT: the whole library, or its lean runtime; never before a GPU was seen."""

from __future__ import annotations

import importlib
from importlib import util
from typing import Any

from tk.runtime.backends.cuda_stack import too_new
from tk.runtime.backends.tensorrt.gpu import Gpu, find_gpus
from tk.runtime.errors import EnvironmentLacks, TkError

WHOLE, LEAN = "tensorrt", "tensorrt_lean"
OLDEST = (8, 6)

INSTALL = (
    "pip install 'tk-vision[gpu]', for a driver of CUDA 12 'tk-vision[gpu-cu12]'; on a Jetson "
    "TensorRT comes with JetPack: make the environment with python3 -m venv --system-site-packages"
)

PACKAGES = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_lean", "cuda-bindings")
"""Distributions that have to be for a CUDA that the driver runs."""


def installed() -> list[str]:
    """Names of the TensorRT packages that can be imported, the whole one first."""
    return [name for name in (WHOLE, LEAN) if util.find_spec(name) is not None]


def missing() -> str:
    """Say what this machine lacks to run plans, "" when nothing. Imports no TensorRT."""
    gpus = find_gpus()
    if not gpus:
        return "no NVIDIA GPU that CUDA may use (libcuda.so.1, cuInit)"
    if not installed():
        return f"TensorRT is not installed: {INSTALL}"
    if not cuda_python():
        return (
            "cuda-python is not installed: pip install 'cuda-python>=13', "
            "for a driver of CUDA 12 'cuda-python>=12.8,<13'"
        )
    return too_new(PACKAGES, gpus[0].driver)


def cuda_python() -> bool:
    """Whether `cuda.bindings` is there; `find_spec` of a child imports its parent, so ask twice."""
    return util.find_spec("cuda") is not None and util.find_spec("cuda.bindings") is not None


def the_gpu(index: int = 0) -> Gpu:
    """The GPU with this number; the first is what CUDA takes when nothing else is said.

    Raises:
        EnvironmentLacks: there is none.
    """
    gpus = find_gpus()
    if not gpus:
        raise EnvironmentLacks(
            "TensorRT needs an NVIDIA GPU, and the driver shows none",
            fix="look at nvidia-smi (on a Jetson: tegrastats) and CUDA_VISIBLE_DEVICES; "
            "tk doctor lists what there is",
        )
    if index >= len(gpus):
        raise EnvironmentLacks(
            f"there is no GPU {index}",
            expected=f"a number from 0 to {len(gpus) - 1}",
            fix="tk doctor lists the GPUs; CUDA_VISIBLE_DEVICES hides some and numbers the rest",
        )
    return gpus[index]


def load(name: str = WHOLE) -> Any:
    """Import TensorRT on a machine with a GPU.

    Args:
        name: `WHOLE` or `LEAN`.

    Raises:
        EnvironmentLacks: no GPU, no such package, one too old, or one whose libraries are broken.
    """
    the_gpu()
    if name not in installed():
        raise EnvironmentLacks(f"{name} is not installed", fix=INSTALL)
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise EnvironmentLacks(
            f"{name} is installed but does not load: {error}",
            fix="its libraries and the driver must be for one CUDA version; tk doctor lists them",
        ) from error
    if version(trt)[:2] < OLDEST:
        raise EnvironmentLacks(
            f"TensorRT {trt.__version__} is too old",
            expected="8.6 or newer",
            fix=INSTALL,
        )
    return trt


def register_plugins(trt: Any, logger: Any) -> None:
    """Make the plugins that come with TensorRT known; RoiAlign is one, to build and to run.

    The lean runtime has none.

    Raises:
        TkError: their library does not load.
    """
    register = getattr(trt, "init_libnvinfer_plugins", None)
    if register is not None and not register(logger, ""):
        raise TkError(
            f"TensorRT {trt.__version__} does not load its plugins (libnvinfer_plugin)",
            fix="install TensorRT whole: " + INSTALL,
        )


def version(trt: Any) -> tuple[int, ...]:
    """Version of a TensorRT module as numbers: (10, 13, 3, 9)."""
    return parse_version(trt.__version__)


def parse_version(text: str) -> tuple[int, ...]:
    """Numbers of a version; what is no number (`10.3.0.post1`) ends it."""
    numbers = []
    for piece in text.split("."):
        if not piece.isdecimal():
            break
        numbers.append(int(piece))
    return tuple(numbers)
