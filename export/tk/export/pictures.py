"""Real images for the gate and for calibration; broken ones are counted and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.export.precision.calibrate import MIN_IMAGES
from tk.runtime.errors import TkError
from tk.runtime.images import find_images, read_image, relative_name
from tk.runtime.preprocess import ImageSpec, fit

GATE_IMAGES = 16
"""Real images that the gate looks at; more only repeat the same arithmetic."""

GATE_INT8 = 32
"""The same for int8, whose error depends on what the image shows."""

NAMED = 5
"""Broken files that a message names."""


@dataclass(frozen=True)
class Pictures:
    """Images on the canvas of a model.

    Attributes:
        gate: (n, H, W, 3) uint8: to compare answers on.
        calibration: (m, H, W, 3) uint8: to measure ranges on; empty when none were asked for.
        shared: whether ranges are measured on images of the gate too, for want of others.
        broken: files that could not be read, relative to the folder.
    """

    gate: NDArray[np.uint8]
    calibration: NDArray[np.uint8]
    shared: bool = False
    broken: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What a person should know about them."""
        if not self.broken:
            return []
        more = f" and {len(self.broken) - NAMED} more" if len(self.broken) > NAMED else ""
        names = ", ".join(self.broken[:NAMED])
        return [f"{len(self.broken)} images could not be read and were passed by: {names}{more}"]


def load_pictures(folder: Path, spec: ImageSpec, calibration: int = 0) -> Pictures:
    """Put images on the model's canvas, spread over the folder; unreadable ones are passed by.

    Args:
        folder: of images.
        spec: the canvas.
        calibration: images to measure ranges on; 0 for none. The gate then gets others, if there
            are enough.

    Raises:
        TkError: not one readable image; or fewer than `MIN_IMAGES` for calibration.
    """
    gate = GATE_INT8 if calibration else GATE_IMAGES
    canvases, broken, looked_at = _read(folder, spec, gate + calibration)
    if not canvases:
        raise TkError(f"no readable image in {folder}: the gate needs real images")
    whole = np.stack(canvases)
    if not calibration:
        return Pictures(whole, whole[:0], broken=broken)
    if len(whole) < MIN_IMAGES:
        raise TkError(
            f"int8 needs at least {MIN_IMAGES} readable images: to measure ranges on, and to judge",
            expected=f"at least {MIN_IMAGES} in {folder}",
            found=f"{len(whole)} of {looked_at}"
            + (f"; not readable: {', '.join(broken[:NAMED])}" if broken else ""),
            fix="give --images a folder with more pictures like those the model will see",
        )
    if len(whole) < 2 * MIN_IMAGES:
        return Pictures(whole[:gate], whole[:calibration], shared=True, broken=broken)
    # Every so many-th judges, so that both see the whole folder.
    judging = np.unique(np.linspace(0, len(whole) - 1, gate).round().astype(int))
    others = np.setdiff1d(np.arange(len(whole)), judging)[:calibration]
    return Pictures(whole[judging], whole[others], broken=broken)


def load_canvases(folder: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Images for the gate alone: (n, H, W, 3) uint8, n <= GATE_IMAGES.

    Raises:
        TkError: not one readable image.
    """
    return load_pictures(folder, spec).gate


def _read(
    folder: Path, spec: ImageSpec, count: int
) -> tuple[list[NDArray[np.uint8]], tuple[str, ...], int]:
    """Canvases, unreadable files, and how many files were tried.

    Files are tried in an order that is spread over the folder, until there are enough.
    """
    files = find_images(folder)
    first = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int))
    others = np.setdiff1d(np.arange(len(files)), first)
    order = [files[index] for index in (*first, *others)]
    canvases: list[NDArray[np.uint8]] = []
    broken: list[str] = []
    for file in order:
        if len(canvases) == count:
            break
        try:
            canvases.append(fit(spec, read_image(file))[0])
        except TkError:
            broken.append(relative_name(file, folder))
    return canvases, tuple(broken), len(canvases) + len(broken)
