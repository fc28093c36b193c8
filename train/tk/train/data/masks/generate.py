"""Make the masks that are missing: one per crop, written only if it is plausible."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import write_bytes
from tk.runtime.images import ImageError, read_image, read_reference, relative_name
from tk.runtime.preprocess import Image
from tk.runtime.progress import Progress, progress
from tk.train.data.masks.masker import Answer, LazyMasker, Masker, one_line
from tk.train.data.masks.report import MaskReport, Outcome, write_report
from tk.train.data.masks.sam2 import open_masker
from tk.train.data.masks.sheet import Sheet
from tk.train.embedder.data import CropFile, read_picture

BATCH_PIXELS = 32_000_000
"""A batch of large crops is cut short here: three masks of full size exist for each of them."""

GIVE_UP = 16
"""A model that fails on so many crops in a row is broken, and the run ends."""


@dataclass(frozen=True)
class Limits:
    """What a mask must keep to; shares of 1.

    Attributes:
        min_iou: least IoU the model predicts of its own mask.
        min_area: least share of the crop; below it a speck was found instead of the object.
        max_area: largest share of the crop; above it nothing was told apart.
    """

    min_iou: float = 0.5
    min_area: float = 0.02
    max_area: float = 0.98

    def objection(self, iou: float, area: float) -> str:
        """Why a mask is not to be trusted; empty for a plausible one."""
        if area <= 0:
            return "empty mask"
        if area < self.min_area:
            return "mask too small"
        if area > self.max_area:
            return "mask covers the crop"
        return "" if iou >= self.min_iou else "low predicted IoU"  # NaN is low too


def ensure_masks(
    root: Path,
    crops: Sequence[CropFile],
    *,
    sam2_cfg: str,
    sam2_ckpt: str,
    device: str,
    out: Path,
) -> MaskReport:
    """Make the masks that are missing before a training; without any, no model is opened.

    Read the crops anew (`find_crops`) afterwards: these still say that they have no mask.

    Args:
        root: folder the crops were found in; masks go to `<class>/masks/{stem}_mask.png`.
        crops: from `find_crops`.
        sam2_cfg: as in `open_masker`.
        sam2_ckpt: as in `open_masker`.
        device: auto, cpu, cuda or cuda:N.
        out: folder that gets masks.csv (what became of each crop) and masks.png (some of them).

    Raises:
        TkError: as `open_masker` and `generate_masks`.
    """
    if all(crop.mask is not None for crop in crops):
        return MaskReport(len(crops), len(crops))
    masker = LazyMasker(lambda: open_masker(sam2_cfg, sam2_ckpt, device))
    return generate_masks(root, masker, crops, report=out / "masks.csv", sheet=out / "masks.png")


def generate_masks(
    root: Path,
    masker: Masker,
    crops: Sequence[CropFile],
    *,
    min_iou: float = 0.5,
    min_area: float = 0.02,
    max_area: float = 0.98,
    batch_size: int = 8,
    overwrite: bool = False,
    report: Path | None = None,
    sheet: Path | None = None,
) -> MaskReport:
    """Write `<class>/masks/{stem}_mask.png` (0 or 255) for the crops without a mask.

    A mask that is not plausible, a crop that cannot be read and a failure of the model leave the
    crop without a mask and are told in the report. Masks that are there are only looked at.

    Args:
        root: folder the crops were found in.
        masker: asked for the missing masks only.
        crops: from `find_crops`.
        min_iou: see `Limits`.
        min_area: see `Limits`.
        max_area: see `Limits`.
        batch_size: crops per call of the model.
        overwrite: make anew the mask files that are broken, empty or not of their crop's size.
            Good masks and all cutouts are left alone even so.
        report: CSV file for the outcomes.
        sheet: PNG file with some crops and their masks.

    Raises:
        TkError: a folder cannot be written, or the model fails again and again.
        Interrupted: Ctrl-C; the masks made so far are whole and the report is written.
    """
    run = _Run(root, masker, Limits(min_iou, min_area, max_area), overwrite, crops)
    finished = False
    try:
        with progress("masks", len(crops)) as bar:
            for batch in run.batches(crops, batch_size, bar):
                run.make(batch)
                bar.advance(len(batch), f"{run.made} made")
        finished = True
    except KeyboardInterrupt:
        what = f"interrupted: {run.done().summary()}; the same command goes on from there"
        raise Interrupted(what) from None
    finally:
        # A model that did not open must not replace the report of an earlier run.
        if report is not None and (finished or run.outcomes):
            write_report(report, run.done())
        if sheet is not None:
            run.sheet.write(sheet)
    return run.done()


class _Run:
    """State of one `generate_masks` call."""

    def __init__(
        self, root: Path, masker: Masker, limits: Limits, overwrite: bool, crops: Sequence[CropFile]
    ) -> None:
        self.root, self.masker, self.limits, self.overwrite = root, masker, limits, overwrite
        self.crops, self.present, self.made, self.failures = len(crops), 0, 0, 0
        self.outcomes: list[Outcome] = []
        self.sheet = Sheet()
        wanted = [crop for crop in crops if overwrite or crop.mask is None]
        for folder in sorted({self.folder(crop) for crop in wanted}):
            _check_writable(folder)

    def done(self) -> MaskReport:
        """What has been done so far."""
        return MaskReport(self.crops, self.present, tuple(self.outcomes))

    def folder(self, crop: CropFile) -> Path:
        """The masks of the crop's class."""
        return self.root / crop.path.relative_to(self.root).parts[0] / "masks"

    def batches(
        self, crops: Sequence[CropFile], size: int, bar: Progress
    ) -> Iterator[list[tuple[CropFile, Image]]]:
        """Crops to make a mask of, with their pictures; the others are noted on the way."""
        batch: list[tuple[CropFile, Image]] = []
        pixels = 0
        for crop in crops:
            image = self.look_at(crop)
            if image is None:
                bar.advance()
                continue
            if batch and (len(batch) == size or pixels + image[..., 0].size > BATCH_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append((crop, image))
            pixels += image[..., 0].size
        if batch:
            yield batch

    def look_at(self, crop: CropFile) -> Image | None:
        """The picture of a crop that needs a mask."""
        try:
            if crop.mask is None:
                return read_image(crop.path)
            picture = read_picture(crop)
        except ImageError as error:
            self.note(crop, "skipped", f"unreadable crop: {error.what}")
            return None
        if picture.mask is not None:
            self.present += 1
            return None
        if self.overwrite and crop.mask.parent.name == "masks":
            return picture.image
        self.note(crop, "unusable", _fault(crop.mask, picture.image))
        return None

    def make(self, batch: Sequence[tuple[CropFile, Image]]) -> None:
        """Ask the model and write what is plausible."""
        answers = _ask(self.masker, [image for _, image in batch])
        for (crop, image), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                self.failed(crop, image, answer)
                continue
            self.failures = 0
            mask, iou = answer
            area = float(mask.mean())
            objection = self.limits.objection(iou, area)
            if not objection:
                self.write(crop, mask)
            outcome = self.note(crop, "skipped" if objection else "made", objection, iou, area)
            self.sheet.add(image, mask, outcome)

    def failed(self, crop: CropFile, image: Image, error: Exception) -> None:
        """Pass over a crop the model could not do, but not over all of them."""
        reason = one_line(error)
        self.sheet.add(image, None, self.note(crop, "skipped", f"model failed: {reason}"))
        self.failures += 1
        if self.failures >= GIVE_UP:
            raise TkError(
                f"the model failed on {self.failures} crops in a row",
                found=reason,
                fix="--device cpu tells whether it is the device; the masks made are kept",
            )

    def write(self, crop: CropFile, mask: NDArray[np.bool_]) -> None:
        """Write one mask; an unusable file under another name would otherwise win over it."""
        path = self.folder(crop) / f"{crop.path.stem}_mask.png"
        _, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
        try:
            write_bytes(path, data.tobytes())
            if crop.mask is not None and not os.path.samefile(crop.mask, path):
                crop.mask.unlink()
        except OSError as error:
            raise _not_writable(path.parent, error) from None

    def note(
        self,
        crop: CropFile,
        result: Literal["made", "skipped", "unusable"],
        reason: str = "",
        iou: float | None = None,
        area: float | None = None,
    ) -> Outcome:
        """Put down what became of a crop."""
        self.made += result == "made"
        outcome = Outcome(relative_name(crop.path, self.root), result, reason, iou, area)
        self.outcomes.append(outcome)
        return outcome


def _ask(masker: Masker, images: Sequence[Image]) -> list[Answer | Exception]:
    """Answers in order; a batch that fails is asked again crop by crop: one may be the cause."""
    try:
        answers = masker.masks(images)
        for image, (mask, _) in zip(images, answers, strict=True):
            if mask.shape != image.shape[:2]:
                raise ValueError(f"a mask {mask.shape} for a crop {image.shape[:2]}")
        return list(answers)
    except TkError:  # the model cannot be opened at all
        raise
    except Exception as error:
        if len(images) == 1:
            return [error]
    # Outside the handler: the error would hold the memory of a batch that was too large.
    return [answer for image in images for answer in _ask(masker, [image])]


def _fault(path: Path, image: Image) -> str:
    """Why the mask file of a crop cannot be used."""
    try:
        mask, _ = read_reference(path)
    except ImageError as error:
        return f"broken mask file: {error.what}"
    (height, width), (tall, wide) = image.shape[:2], mask.shape[:2]
    if (height, width) != (tall, wide):
        return f"mask of another size: {wide}x{tall} for a crop of {width}x{height}"
    return "empty mask file"


def _check_writable(folder: Path) -> None:
    """Fail before the model is opened, not after its first batch."""
    place = folder if folder.exists() else folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=place):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from None


def _not_writable(folder: Path, error: OSError) -> Exception:
    if error.errno == errno.ENOSPC:
        return error  # the command line has words for a full disk
    return TkError(
        f"masks cannot be written to {folder}",
        found=error.strerror or str(error),
        fix="make the folder writable, or copy the crops to one that is",
    )
