"""Arrays on disk, whole or absent; they read with `allow_pickle=False`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.files import write_bytes


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write one array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    keywords: dict[str, Any] = dict(arrays)
    np.savez(buffer, **keywords)
    write_bytes(path, buffer.getvalue())
