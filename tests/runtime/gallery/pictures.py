"""Reference pictures that the tiny embedder (mean colour) tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = {"красный": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}


def rgba(color: tuple[int, int, int], seed: int) -> Image.Image:
    """A coloured disc on a transparent, misleading background."""
    random = np.random.default_rng(seed)
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[..., :3] = random.integers(0, 256, 3)
    yy, xx = np.mgrid[:40, :40]
    disc = (yy - 20) ** 2 + (xx - 20) ** 2 < 150
    picture[disc] = (*np.clip(np.add(color, random.integers(-5, 6, 3)), 0, 255), 255)
    return Image.fromarray(picture)


def write_references(
    folder: Path, count: int = 6, first: int = 0, **more: tuple[int, int, int]
) -> Path:
    """Write FOLDER/<class>/cropped/*.png, `count` per class; `more` are further classes."""
    for name, color in {**COLORS, **more}.items():
        (folder / name / "cropped").mkdir(parents=True)
        for index in range(first, first + count):
            rgba(color, index).save(folder / name / "cropped" / f"{index}.png")
    return folder


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows made unit length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def blobs(
    seed: int, classes: int, each: int, noise: float = 0.15
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors around one axis per class, `each` per class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    rows = np.eye(classes, 32)[labels] + noise * random.normal(size=(len(labels), 32))
    return unit(rows), labels
