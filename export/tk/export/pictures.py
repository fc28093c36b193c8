"""Real images for the gate and for calibration; broken ones are counted and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.export.model import ExportModel
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
    """Images on the canvas of a model; features, for a model that sees no images.

    Attributes:
        gate: (n, H, W, 3) uint8, or (n, F) float32: to compare answers on.
        calibration: (m, …) of the same: to measure ranges on; empty when none were asked for.
        shared: whether ranges are measured on images of the gate too, for want of others.
        broken: files that could not be read, relative to the folder.
        note: what else a person should know.
    """

    gate: NDArray[Any]
    calibration: NDArray[Any]
    shared: bool = False
    broken: tuple[str, ...] = ()
    note: str = ""

    def lines(self) -> list[str]:
        """What a person should know about them."""
        said = [self.note] if self.note else []
        if self.shared:
            said.append(
                f"int8: the {len(self.gate)} images that judge are among the "
                f"{len(self.calibration)} whose ranges were measured; they are others "
                f"with {2 * MIN_IMAGES} images or more"
            )
        if not self.broken:
            return said
        more = f" and {len(self.broken) - NAMED} more" if len(self.broken) > NAMED else ""
        names = ", ".join(self.broken[:NAMED])
        return [
            *said,
            f"{len(self.broken)} images could not be read and were passed by: {names}{more}",
        ]


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
    return _divided(whole, gate, calibration, broken)


def load_inputs(model: ExportModel, images: Path | None, calibration: int = 0) -> Pictures:
    """What the gate feeds: images on the canvas, or features to a model that sees no images.

    Args:
        model: to be judged.
        images: folder of images; or, for a model that takes features, a .npy file of them, None
            for its own.
        calibration: as of `load_pictures`.

    Raises:
        TkError: as `load_pictures`; no images for a model that sees them, or images for one that
            takes features.
    """
    if model.rows is None:
        if images is None:
            raise TkError(
                "the gate compares answers on real images, and none are given",
                fix="add --images DIR: a folder of pictures like those the model will see",
            )
        return load_pictures(images, model.image, calibration)
    rows, source = model.rows, model.rows_from
    if images is not None:
        rows, source = _read_rows(images, rows.shape[1]), images.name
    count = (GATE_INT8 if calibration else GATE_IMAGES) + calibration
    if len(rows) < (MIN_IMAGES if calibration else 1):
        raise TkError(
            f"too few features in {source}",
            expected=f"at least {MIN_IMAGES if calibration else 1}",
            found=str(len(rows)),
        )
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
    note = f"compared on {len(chosen)} features: {source}"
    if not calibration:
        return Pictures(chosen, chosen[:0], note=note)
    return replace(_divided(chosen, GATE_INT8, calibration), note=note)


def _read_rows(path: Path, length: int) -> NDArray[np.float32]:
    """Features from a .npy file: (n, length) float32."""
    if path.suffix != ".npy" or not path.is_file():
        raise TkError(
            "this head takes features of a backbone, not images",
            expected=f".npy file of features (n, {length}), or no --images at all",
            found=str(path),
            fix="give --backbone FILE as well, to export the chain that sees images",
        )
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise TkError(f"{path} cannot be read as an array", found=str(error)) from None
    if rows.ndim != 2 or rows.shape[1] != length or not np.isfinite(rows).all():
        raise TkError(
            f"{path} does not hold features for this head",
            expected=f"(n, {length}) finite numbers",
            found=f"{rows.dtype} {rows.shape}",
        )
    return np.asarray(rows, np.float32)


def _divided(
    whole: NDArray[Any], gate: int, calibration: int, broken: tuple[str, ...] = ()
) -> Pictures:
    """Divide among gate and calibration."""
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
