"""Where a training computes, and in which precision."""

from __future__ import annotations

import torch

from tk.runtime.errors import EnvironmentLacks, TkError


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` into a device.

    Raises:
        EnvironmentLacks: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TkError("unknown device", expected="auto, cpu, cuda or cuda:N", found=name) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentLacks(
            f"there is no device {name}",
            found=f"{torch.cuda.device_count()} CUDA devices",
            fix="--device cpu",
        )
    return device


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Say whether the forward pass runs in bfloat16; `auto` takes it where hardware has it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without these instructions a CPU emulates bfloat16, slower than float32.
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
