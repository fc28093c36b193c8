"""What this machine has and lacks, and how to get what is missing."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tk.runtime.backends.registry import BACKENDS


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        topic: `python`, `cpu`, `gpu`, `back end`, `package`.
        name: what was looked at.
        state: `ok`, `missing` or `none`.
        text: version or size; for `missing`, how to get it.
    """

    topic: str
    name: str
    state: str
    text: str


PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("faiss-cpu", "prototype search", "pip install 'tk-vision[cpu]'"),
    ("torch", "training, export, benchmarks against PyTorch", "pip install 'tk-vision[train]'"),
    ("timm", "backbones of the embedder", "pip install 'tk-vision[train]'"),
    ("albumentations", "augmentation of the embedder", "pip install 'tk-vision[train]'"),
    ("onnx", "export", "pip install 'tk-vision[export]'"),
    ("onnxscript", "export", "pip install 'tk-vision[export]'"),
)
"""Distribution, what it is for, how to get it."""


def examine() -> list[Line]:
    """Look at Python, processor, memory, GPUs, back ends and packages; imports nothing heavy."""
    lines = [
        Line("python", "Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        Line("python", "tk-vision", "ok", metadata.version("tk-vision")),
        *_other_tk(),
        Line("cpu", "cores", "ok", f"{_cores()} ({_processor()})"),
        Line("cpu", "memory", "ok", _memory()),
        *_gpus(),
    ]
    for backend in BACKENDS.values():
        lack = backend.load().missing()
        text = lack or f"runs {backend.kind} on {backend.device}"
        lines.append(Line("back end", backend.name, "missing" if lack else "ok", text))
    lines += [_package(*entry) for entry in PACKAGES]
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


def _gpus() -> list[Line]:
    """Ask the driver, not a framework: TensorRT 8.6 crashes where there is no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            names = _nvidia_names() or ["NVIDIA GPU"] * count.value
            return [Line("gpu", f"GPU {i}", "ok", name) for i, name in enumerate(names)]
    except OSError:
        return [Line("gpu", "NVIDIA GPU", "none", "no driver (libcuda.so.1): the CPU is used")]
    return [Line("gpu", "NVIDIA GPU", "none", "driver found, no usable GPU: the CPU is used")]


def _nvidia_names() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _package(distribution: str, purpose: str, fix: str) -> Line:
    for name in (distribution, distribution.replace("-cpu", "-gpu")):
        try:
            return Line("package", name, "ok", f"{metadata.version(name)} ({purpose})")
        except metadata.PackageNotFoundError:
            continue
    return Line("package", distribution, "missing", f"{purpose}: {fix}")
