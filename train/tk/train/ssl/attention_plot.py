"""Pictures of where the heads of the last block look, beside the training pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.files import write_bytes

FILE = "attention.png"
SIDE = 112
"""Of one tile, pixels."""
GAP = 4


def write_attention(
    folder: Path, images: Sequence[NDArray[np.uint8]], attention: NDArray[np.float32]
) -> Path:
    """Write `attention.png`: a row per picture; the picture, the mean of the heads, each head.

    Args:
        images: B pictures, (S, S, 3) uint8 RGB.
        attention: (B, heads, h, w) shares of the class token's attention; each tile is scaled to
            its own range, bright is much.

    Returns:
        the file.
    """
    rows = []
    for image, shares in zip(images, attention, strict=True):
        tiles = [_tile(image)] + [_heat(one) for one in (shares.mean(axis=0), *shares)]
        rows.append(np.concatenate([_framed(tile) for tile in tiles], axis=1))
    sheet = np.concatenate(rows, axis=0)
    path = folder / FILE
    write_bytes(path, cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())
    return path


def _tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    resized = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.uint8)


def _heat(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(shares.min()), float(shares.max())
    levels = np.zeros_like(shares) if high <= low else (shares - low) / (high - low)
    colours = cv2.applyColorMap(np.rint(levels * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return _tile(np.ascontiguousarray(colours[:, :, ::-1]).astype(np.uint8))


def _framed(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)
