"""Timings of kernels, kept between builds: a file per TensorRT version and GPU, under a lock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.files import locked, write_bytes


def cache_file(folder: Path, version: str, gpu: Gpu) -> Path:
    """Name of the cache: timings of another version or GPU would be wrong."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return folder / f"trt{version}-{name}-{gpu.sm}.timing"


def attach(config: Any, file: Path) -> None:
    """Give the builder what is known; a cache that it refuses is started anew."""
    with locked(file):
        data = file.read_bytes() if file.is_file() else b""
    for content in (data, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def save(config: Any, file: Path) -> None:
    """Keep what the build learned, together with what other builds wrote meanwhile.

    The lock is held while files are merged, not while a plan is built: builds take minutes.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    with locked(file):
        if file.is_file():
            other = config.create_timing_cache(file.read_bytes())
            if other is not None:
                cache.combine(other, False)
        memory = cache.serialize()
        if memory is not None:
            write_bytes(file, bytes(memory))
