"""Symmetric int8 numbers: scales of tensors and channels, rounding, and room for biases."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HIGHEST = 127
"""int8 without -128, so that the range is symmetric."""

LARGEST_BIAS = 2.0**30
"""Engines turn a bias into int32 of the scale (activation * weight): above it would overflow."""


def scale_of(low: float, high: float) -> np.float32:
    """Scale of a tensor with this range; 1 for one that is always zero."""
    scale = np.float32(max(-low, high, 0.0) / HIGHEST)
    return scale if scale >= np.finfo(np.float32).tiny else np.float32(1)


def channel_scales(
    weight: NDArray[np.float32],
    axis: int,
    bias: NDArray[np.float32] | None = None,
    activation: np.float32 | float = 1.0,
) -> NDArray[np.float32]:
    """Scale of each output channel.

    Args:
        weight: of a Conv, Gemm or MatMul.
        axis: of the output channels, C of them.
        bias: (C,) float32 that is added to the product. A channel of tiny weights and a plain bias,
            as folded batch norms leave them, gets a larger scale so that the bias fits into int32.
        activation: scale of the other operand.

    Returns:
        (C,) float32, above 0.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.asarray(np.abs(weight).max(axis=others, initial=0) / HIGHEST, np.float32)
    if bias is not None and bias.size == scales.size:
        needed = np.abs(bias.reshape(-1)) / (np.float32(activation) * LARGEST_BIAS)
        scales = np.maximum(scales, needed.astype(np.float32))
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)


def round_to_int8(
    values: NDArray[np.float32], scales: NDArray[np.float32], axis: int
) -> NDArray[np.int8]:
    """Nearest multiples of the scale of each channel, ties to even, saturated at +-127."""
    shape = [1] * values.ndim
    shape[axis] = -1
    steps = np.rint(values / scales.reshape(shape))
    return np.asarray(np.clip(steps, -HIGHEST, HIGHEST), np.int8)
