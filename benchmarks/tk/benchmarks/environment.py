"""Where a benchmark ran: machine, libraries, and how busy others kept it."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tk.runtime.backends.tensorrt.gpu import find_gpus

LIBRARIES = (
    *("tk-vision", "torch", "torchvision", "timm", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "tensorrt", "cuda-python"),
    *("faiss-cpu", "faiss-gpu", "numpy", "opencv-python-headless", "pillow"),
    *("albumentations", "lightly"),
)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(threads: int) -> dict[str, Any]:
    """Describe the machine and the libraries; take it before the work, for the load of others.

    Args:
        threads: that each side was given.
    """
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu_model(),
        "cores": available_cores(),
        "gpus": [
            f"{gpu.name}, {gpu.sm}, {gpu.memory / 2**30:.0f} GiB, driver for CUDA "
            f"{gpu.driver[0]}.{gpu.driver[1]}"
            for gpu in find_gpus()
        ],
        "threads": threads,
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "load_average": load_average(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def where(facts: dict[str, Any]) -> list[str]:
    """Sentences of a results page about the machine and the libraries, from `environment`.

    Results that hold `load_average_after` say that as well.
    """
    load = _numbers(facts["load_average"])
    if after := facts.get("load_average_after"):
        load = f"{load}, after: {_numbers(after)}"
    gpus = "".join(f"; {gpu}" for gpu in facts.get("gpus", ()))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['system']}"
        f"{gpus}; threads: {facts['threads'] or 'all'}; load average before: {load}",
        f"Python {facts['python']}, {versions}",
    ]


def _numbers(values: list[float]) -> str:
    return " ".join(str(value) for value in values)


def load_average() -> list[float]:
    """Processes that ran or waited, mean of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
