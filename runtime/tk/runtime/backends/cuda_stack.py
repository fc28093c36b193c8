"""For which CUDA the installed packages are, and whether the driver can run it; imports none.

A driver runs programs of its own CUDA major version and of older ones. Packages of one process may
be for different ones, each with its own libraries beside it, but none for a newer one than the
driver's.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata

INSTALL = {13: "pip install 'tk-vision[gpu]'", 12: "pip install 'tk-vision[gpu-cu12]'"}
"""CUDA of the driver -> what brings everything for it."""

NEEDS_PYTHON = {13: (3, 11), 12: (3, 10)}
"""CUDA -> oldest Python that onnxruntime-gpu has wheels for."""

OLDEST_DRIVER = "update the NVIDIA driver: 525 or newer runs CUDA 12, 580 or newer CUDA 13"

_CUDA = re.compile(r"[-_]cu(1\d)(?!\d)")


def install_command(driver: tuple[int, int], python: tuple[int, int] | None = None) -> str:
    """What to type on a machine whose driver runs this CUDA, to get all of it.

    Args:
        driver: newest CUDA that the driver can run, (12, 6) for 12.6.
        python: version that packages are installed for; the running one without.
    """
    running = python or sys.version_info[:2]
    fitting = [n for n in sorted(INSTALL) if n <= driver[0] and running >= NEEDS_PYTHON[n]]
    return INSTALL[fitting[-1]] if fitting else OLDEST_DRIVER


def too_new(distributions: tuple[str, ...], driver: tuple[int, int]) -> str:
    """Say which installed package the driver cannot run, "" when there is none.

    Args:
        distributions: names; those that are not installed are passed by.
        driver: newest CUDA that the driver can run.
    """
    for name in distributions:
        version, cuda = found_cuda(name)
        if cuda > driver[0]:
            return (
                f"{name} {version} is for CUDA {cuda}, the driver runs {driver[0]}.{driver[1]}: "
                f"pip uninstall {name}, then {install_command(driver)}"
            )
    return ""


def found_cuda(distribution: str) -> tuple[str, int]:
    """Version of a distribution and the CUDA major version that it is for.

    Returns:
        ("", 0) when it is not installed; 0 as CUDA when it does not say, as on a Jetson.
    """
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return "", 0
    if distribution in ("cuda-python", "cuda-bindings"):
        return found.version, int(found.version.split(".")[0])
    words = _CUDA.findall(" ".join((distribution, *(found.requires or ()))))
    return found.version, max(map(int, words), default=0)
