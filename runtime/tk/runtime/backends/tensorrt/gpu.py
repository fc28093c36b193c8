"""The NVIDIA GPUs of this machine, asked of the driver alone.

TensorRT 8.6 crashes the process on a machine without a GPU, so this comes before any of its calls.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

MAJOR, MINOR = 75, 76
"""`CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*` of the driver's interface."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver says it.
        capability: compute capability, (9, 0) for an H200.
        memory: in all, bytes.
        driver: newest CUDA that the driver can run, (12, 6) for 12.6.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    driver: tuple[int, int]

    @property
    def sm(self) -> str:
        """Compute capability as plans are named by it: `sm90`."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def find_gpus() -> list[Gpu]:
    """List the GPUs that CUDA may use, the default one first; empty without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    newest = (version.value // 1000, version.value % 1000 // 10)
    return [_describe(driver, index, newest) for index in range(count.value)]


def _describe(driver: Any, index: int, newest: tuple[int, int]) -> Gpu:
    device, name, memory = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(), (capability[0], capability[1]), memory.value, newest)
