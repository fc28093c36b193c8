"""What this machine has and lacks, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tk.runtime.backends.cuda_stack import too_new
from tk.runtime.backends.registry import BACKENDS, Backend
from tk.runtime.backends.tensorrt import library
from tk.runtime.errors import TkError
from tk.runtime.gallery import faiss_device
from tk.runtime.machine import Machine, this_machine


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        topic: `python`, `cpu`, `gpu`, `back end`, `package`, `install`.
        name: what was looked at.
        state: `ok`; `missing`: this machine should have it; `none`: it is not here and need not
            be; `advice`: what to type on a machine of this kind.
        text: version or size; how to get what is not here.
    """

    topic: str
    name: str
    state: str
    text: str


PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("torch", "training, export, benchmarks against PyTorch", "pip install 'tk-vision[train]'"),
    ("tokenizers", "prompts of text detectors", "pip install 'tk-vision[text]'"),
    ("timm", "backbones of the embedder", "pip install 'tk-vision[train]'"),
    ("albumentations", "augmentation of the embedder", "pip install 'tk-vision[train]'"),
    ("onnx", "export", "pip install 'tk-vision[export]'"),
    ("onnxscript", "export", "pip install 'tk-vision[export]'"),
)
"""Distribution, what it is for, how to get it."""

LIBRARIES: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_lean"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino-cpu": ("openvino",),
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
}
"""Back end -> distributions that may bring its library."""


def examine() -> list[Line]:
    """Look at Python, processor, memory, GPUs, back ends and packages; imports nothing heavy."""
    machine = this_machine()
    lines = [
        Line("python", "Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        Line("python", "tk-vision", "ok", metadata.version("tk-vision")),
        *_other_tk(),
        Line("cpu", "cores", "ok", f"{_cores()} ({_processor()})"),
        Line("cpu", "memory", "ok", _memory()),
        *_gpus(machine),
        *_cuda(machine),
    ]
    lines += [_backend(backend, machine) for backend in BACKENDS.values()]
    lines.append(_faiss(machine))
    lines += [_package(*entry) for entry in PACKAGES]
    lines += [Line("install", what, "advice", command) for command, what in machine.recipe()]
    return lines


def _other_tk() -> list[Line]:
    """PyPI's `tk` (TensorKit) installs a package of our import name and hides ours."""
    try:
        version = metadata.version("tk")
    except metadata.PackageNotFoundError:
        return []
    return [Line("python", "tk (TensorKit)", "missing", f"{version} shadows us: pip uninstall tk")]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.1f} GiB"


def _gpus(machine: Machine) -> list[Line]:
    lines = [
        Line(
            "gpu",
            f"GPU {index}",
            "ok",
            f"{gpu.name}, {gpu.memory / 2**30:.1f} GiB, compute capability "
            f"{gpu.capability[0]}.{gpu.capability[1]}, driver for CUDA "
            f"{gpu.driver[0]}.{gpu.driver[1]}{_driver()}",
        )
        for index, gpu in enumerate(machine.gpus)
    ]
    if not machine.gpus:
        lines = [Line("gpu", "NVIDIA GPU", "none", "none that CUDA may use: the CPU is used")]
    if machine.l4t is not None:
        jetpack, tensorrt = machine.jetpack
        old = machine.l4t < (36, 0)
        text = f"JetPack {jetpack}, with TensorRT {tensorrt}"
        lines.append(Line("gpu", "Jetson", "missing" if old else "ok", text))
    return lines


def _cuda(machine: Machine) -> list[Line]:
    """Try what a session asks of CUDA; packages that lack or do not fit are told elsewhere."""
    if (
        not machine.gpus
        or not library.cuda_python()
        or too_new(("cuda-bindings",), machine.gpus[0].driver)
    ):
        return []
    from tk.runtime.backends.tensorrt import cuda

    numbers = range(len(machine.gpus))
    for index in numbers:
        try:
            cuda.try_out(index)
        # RuntimeError: cuda-python does not find a function in the driver or a library.
        except (TkError, RuntimeError, OSError) as error:
            return [Line("gpu", "CUDA", "missing", f"GPU {index}: {' '.join(str(error).split())}")]
    text = f"memory, a copy there and back on GPU {', '.join(map(str, numbers))}"
    return [Line("gpu", "CUDA", "ok", text)]


def _driver() -> str:
    """`, driver 580.65`, where nvidia-smi tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    words = done.stdout.split()
    return f" ({words[0]})" if done.returncode == 0 and words else ""


def _backend(backend: Backend, machine: Machine) -> Line:
    if backend.device == "cuda" and not machine.gpus:
        return Line("back end", backend.name, "none", "needs an NVIDIA GPU")
    if lack := backend.load().missing():
        # OpenVINO is a choice; the others are what a machine of this kind runs on.
        optional = backend.extra == "openvino" or (machine.l4t and backend.kind == "onnx")
        return Line("back end", backend.name, "none" if optional else "missing", lack)
    found = [(name, version) for name in LIBRARIES[backend.name] if (version := _version(name))]
    library = " ".join(found[0]) if found else "version not told"
    return Line(
        "back end", backend.name, "ok", f"{library}, runs {backend.kind} on {backend.device}"
    )


def _faiss(machine: Machine) -> Line:
    if lack := faiss_device.missing():
        return Line("package", "faiss", "missing", f"prototype search: {lack}")
    (name,) = faiss_device.installed() or ("faiss",)
    text = f"{_version(name) or 'version not told'} (prototype search)"
    has_wheels = machine.l4t is None and machine.processor in ("x86_64", "AMD64")
    if machine.gpus and has_wheels and name == "faiss-cpu":
        text += "; on the CPU: faiss-gpu searches on the GPU"
    return Line("package", name, "ok", text)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _package(distribution: str, purpose: str, fix: str) -> Line:
    if version := _version(distribution):
        return Line("package", distribution, "ok", f"{version} ({purpose})")
    return Line("package", distribution, "none", f"{purpose}: {fix}")
