"""FAISS: whether it is there, and on which device it searches.

What is stored and built is always an index of the CPU. Where FAISS sees a GPU, it is copied there,
in float32 and exact: the neighbours are the same up to ties.
"""

from __future__ import annotations

from importlib import metadata, util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.tensorrt.gpu import find_gpus
from tk.runtime.devices import Device
from tk.runtime.errors import EnvironmentLacks

PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs", "faiss-cuda")
"""Distributions that install the folder `faiss`."""

OLDEST_GPU = (7, 0)
"""Compute capability that faiss-gpu has kernels for; on an older GPU it ends the process."""

MOST_NEIGHBOURS = 2048
"""What one search on a GPU can return per query."""

WORK_BYTES = 64 << 20
"""Memory to work in that FAISS takes from the GPU at once; its own choice would be 1.5 GiB, on a
small GPU the place of a model. Larger searches take more for their own time."""


def installed() -> list[str]:
    """Distributions of FAISS that are installed."""
    found = []
    for name in PACKAGES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def missing() -> str:
    """Say why FAISS cannot be used, "" when it can; imports nothing."""
    if len(found := installed()) > 1:
        return (
            f"{' and '.join(found)} are all installed and overwrite each other: "
            f"pip uninstall {' '.join(found)}, then install one of them"
        )
    if util.find_spec("faiss") is None:
        return (
            "FAISS is not installed: pip install 'tk-vision[cpu]', "
            "or 'tk-vision[gpu]' on a machine with an NVIDIA GPU"
        )
    return ""


def load_faiss() -> Any:
    """Import FAISS.

    Raises:
        EnvironmentLacks: it is not installed, twice, or does not load.
    """
    if lack := missing():
        raise EnvironmentLacks("prototype search needs FAISS", found=lack)
    try:
        import faiss
    except (ImportError, RuntimeError, OSError) as error:  # its GPU build checks for CUDA's wheels
        raise EnvironmentLacks(
            f"FAISS is installed but does not load: {str(error).strip()}",
            fix="its CUDA libraries must be there: pip install 'tk-vision[gpu]'; "
            "or take the build for the CPU: pip uninstall faiss-gpu, pip install faiss-cpu",
        ) from error
    return faiss


def stays_on_cpu(faiss: Any, device: Device, neighbours: int) -> str:
    """Say why a search runs on the CPU, "" when it runs on a GPU.

    Args:
        device: that the user asked for.
        neighbours: that one search returns per query.
    """
    if device.kind == "cpu":
        return "as asked"
    if not hasattr(faiss, "StandardGpuResources"):
        return "this FAISS sees no GPU; it is a build for the CPU"
    # An error of CUDA ends the process in FAISS, so it is asked only where a GPU answers to us.
    found = find_gpus()
    gpus = int(faiss.get_num_gpus()) if found else 0
    if not gpus:
        return "FAISS sees no GPU"
    if device.index >= min(gpus, len(found)):
        return f"FAISS sees {gpus} GPUs, none with number {device.index}"
    if (gpu := found[device.index]).capability < OLDEST_GPU:
        return f"FAISS is built for compute capability 7.0 and newer, {gpu.name} is {gpu.sm}"
    if neighbours > MOST_NEIGHBOURS:
        return f"a GPU returns {MOST_NEIGHBOURS} neighbours at most, here are {neighbours} classes"
    return ""


class GpuCopies:
    """Copies of indexes on one GPU.

    Args:
        faiss: the library.
        device: number of the GPU.
    """

    def __init__(self, faiss: Any, device: int) -> None:
        self._faiss, self._device = faiss, device
        self._resources: Any = faiss.StandardGpuResources()  # must outlive the copies
        self._resources.setTempMemory(WORK_BYTES)
        self._resources.setPinnedMemory(0)  # its own choice is 256 MiB of the host's, for each copy

    def copy(self, index: Any) -> Any:
        """Copy an index of the CPU to the GPU.

        Raises:
            EnvironmentLacks: it does not fit into the GPU's memory.
        """
        try:
            return self._faiss.index_cpu_to_gpu(
                self._resources, self._device, index, self._options()
            )
        except RuntimeError as error:
            size = index.ntotal * index.d * 4 / 2**20
            raise EnvironmentLacks(
                "the references do not fit into the memory of the GPU",
                expected=f"{size:,.0f} MiB for {index.ntotal} references and "
                f"{WORK_BYTES >> 20} MiB to work in",
                found=str(error).strip().splitlines()[0],
                fix="stop what else uses the GPU, or search on the CPU: --device cpu",
            ) from error

    def search(
        self, index: Any, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Nearest `count` rows of an index for each query: similarities and row numbers.

        Raises:
            EnvironmentLacks: the GPU has no memory left to work in.
        """
        try:
            values, rows = index.search(queries, count)
        except RuntimeError as error:
            raise EnvironmentLacks(
                f"the GPU has no memory left to compare {len(queries)} crops",
                found=str(error).strip().splitlines()[0],
                fix="stop what else uses the GPU, lower --batch-size, or search on the CPU: "
                "--device cpu",
            ) from error
        return values, rows

    def _options(self) -> Any:
        options = self._faiss.GpuClonerOptions()
        options.useFloat16 = options.useFloat16CoarseQuantizer = False  # exact, as on the CPU
        if hasattr(options, "use_cuvs"):
            options.use_cuvs = False  # one way to search, whatever FAISS was built with
        return options
