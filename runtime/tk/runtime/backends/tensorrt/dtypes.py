"""TensorRT's types and numpy's; `trt.nptype` knows fewer, and its set changes with the version."""

from __future__ import annotations

from typing import Any

NUMPY_OF = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""Name of a member of `trt.DataType` -> numpy dtype. BF16, FP8 and the 4-bit types have none."""


def numpy_name(dtype: Any) -> str:
    """numpy dtype of a tensor's type, "" for one that numpy lacks."""
    return NUMPY_OF.get(dtype.name, "")


def has_type(trt: Any, dtype: str) -> bool:
    """Whether this TensorRT can take or give arrays of a numpy dtype: 8.6 has no int64."""
    return any(hasattr(trt.DataType, name) for name, numpy in NUMPY_OF.items() if numpy == dtype)
