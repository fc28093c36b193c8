"""The low precisions: their names, their limits, and rounding to them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

Precision = Literal["fp16", "bf16"]

ONNX_TYPE: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TYPE_NAME: dict[str, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

LARGEST: dict[str, float] = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
"""Largest finite number of a precision. float32's own largest is infinite in bfloat16."""

SMALLEST: dict[str, float] = {"fp16": 2.0**-24, "bf16": 9.183549615799121e-41}
"""Smallest positive number of a precision; half of it and less becomes zero."""

SMALLEST_NORMAL: dict[str, float] = {"fp16": 2.0**-14, "bf16": 2.0**-126}
"""Below it numbers lose digits, and some engines take them for zero."""


def low_tensor(values: NDArray[np.generic], name: str, precision: Precision) -> onnx.TensorProto:
    """Round float32 numbers, to the nearest and ties to even.

    Args:
        values: float32, any shape.
        name: of the tensor.
        precision: to round to.
    """
    if precision == "fp16":
        with np.errstate(over="ignore"):  # infinities are meant where they come from
            raw = np.asarray(values, np.float32).astype("<f2").tobytes()
    else:
        raw = _bfloat16_bits(np.asarray(values, np.float32)).astype("<u2").tobytes()
    tensor = TensorProto()
    tensor.name, tensor.data_type, tensor.raw_data = name, ONNX_TYPE[precision], raw
    tensor.dims.extend(values.shape)
    return tensor


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The upper half of each float32, rounded."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded)
