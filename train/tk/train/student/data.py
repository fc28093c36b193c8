"""Crops of a student: labelled ones in three splits, and others that only the teacher explains."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import sha256_file
from tk.runtime.images import find_images, read_image
from tk.runtime.preprocess import Image, fit
from tk.train.embedder.augment import shrink
from tk.train.embedder.cache import Budget, Cache
from tk.train.embedder.data import CropFile, Picture, check_class_sizes, find_crops, photo_of
from tk.train.embedder.split import split_crops
from tk.train.run.distributed import is_main
from tk.train.student.config import StudentConfig
from tk.train.student.label_loss import UNLABELLED

SHOWN = 10
"""So many broken files are named on the screen."""


class StudentData:
    """Pictures of a run.

    Args:
        canvas: side of the largest canvas that training pictures are drawn on, pixels.

    Attributes:
        classes: names in the order of the logits.
        train: pictures to learn from, those without a label last (label `UNLABELLED`).
        held: `val` and `test` -> canvases of the student.
        skipped: one sentence per file that was left out.

    Raises:
        TkError: data that cannot be used.
    """

    def __init__(self, config: StudentConfig, classes: tuple[str, ...], canvas: int) -> None:
        self.config, self.classes = config, classes
        _, crops = find_crops(config.data, merge=config.merge, exclude=config.exclude)
        check_class_sizes(classes, crops, config.min_per_class)
        splits = split_crops(crops, config.val_split, config.test_split, config.split_seed)
        more = _unlabelled(config.unlabelled, [*splits["val"], *splits["test"]], splits["train"])
        budget, spec = Budget(int(config.cache_gb * 1e9)), config.image_spec()

        def held(crop: CropFile) -> Image:
            return fit(spec, self.read(crop))[0]

        def picture(crop: CropFile) -> Image:
            return shrink(Picture(self.read(crop), None), canvas).image

        self.train = Cache([*splits["train"], *more], picture, _bytes, budget)
        self.held = {name: Cache(splits[name], held, _bytes, budget) for name in ("val", "test")}
        self.skipped = [*self.train.skipped]
        for cache in self.held.values():
            self.skipped += cache.skipped
        self.splits = {"train": [crop for crop in self.train.crops if crop.label != UNLABELLED]}
        self.splits |= {name: cache.crops for name, cache in self.held.items()}
        if self.skipped:
            self._tell()
            usable = [crop for part in self.splits.values() for crop in part]
            check_class_sizes(classes, usable, config.min_per_class, skipped=len(self.skipped))

    def read(self, crop: CropFile) -> Image:
        """A crop as it is: (H, W, 3) uint8 RGB."""
        return read_image(crop.path)

    def _tell(self) -> None:
        if is_main():
            for text in self.skipped[:SHOWN]:
                print(f"left out: {text}", file=sys.stderr)
            print(f"{len(self.skipped)} files left out", file=sys.stderr)

    def labels(self, split: str) -> NDArray[np.int64]:
        """Class of every crop of a split: (N,) int64."""
        return np.asarray([crop.label for crop in self.splits[split]], np.int64)

    def files(self, split: str) -> list[str]:
        """Names of the crops of a split, relative to the data folder."""
        return [c.path.relative_to(self.config.data).as_posix() for c in self.splits[split]]

    def facts(self) -> dict[str, str]:
        """Classes, which crops lie in which split, and which have no label."""
        digest = hashlib.sha256()
        for split, crops in self.splits.items():
            for crop, name in zip(crops, self.files(split), strict=True):
                digest.update(f"{split}\0{crop.label}\0{name}\n".encode())
        others = self.train.crops[len(self.splits["train"]) :]
        names = hashlib.sha256()
        for crop in others:
            names.update(f"{crop.path.name}\0{crop.path.stat().st_size}\n".encode())
        return {
            "classes": ", ".join(self.classes),
            "crops and splits": digest.hexdigest()[:16],
            "pictures without labels": f"{len(others)} files {names.hexdigest()[:16]}",
        }


def check_places(config: StudentConfig) -> None:
    """Refuse a run folder among the classes.

    Raises:
        TkError: `--out` lies in `--data`.
    """
    if config.out.resolve().is_relative_to(config.data.resolve()):
        raise TkError(
            f"the run folder {config.out} lies among the classes of {config.data}",
            fix="give an --out beside the data",
        )


def _unlabelled(
    folders: Sequence[Path], held: Sequence[CropFile], labelled: Sequence[CropFile]
) -> list[CropFile]:
    """Pictures to learn from without labels: none twice, and none that the run is judged by."""
    is_held, photos = _copies_of(held), {crop.group for crop in held}
    seen = {crop.path.resolve() for crop in labelled}
    found, copies, alike = [], 0, 0
    for folder in folders:
        for path in find_images(folder):
            if (real := path.resolve()) in seen:
                continue
            if is_held(real):
                copies += 1
            elif photo_of(path) in photos:
                alike += 1
            else:
                seen.add(real)
                found.append(CropFile(path, UNLABELLED, path.stem))
    if (copies or alike) and is_main():
        print(
            f"pictures without labels left out: {copies} are crops of val or test, {alike} are "
            "named like crops of the same photos",
            file=sys.stderr,
        )
    return found


def _copies_of(crops: Sequence[CropFile]) -> Callable[[Path], bool]:
    """Say of a file whether it holds the bytes of one of these; only equal sizes are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for crop in crops:
        by_size[crop.path.stat().st_size].append(crop.path)

    @functools.cache
    def digests(size: int) -> set[str]:
        return {sha256_file(path) for path in by_size[size]}

    def is_copy(path: Path) -> bool:
        try:
            size = path.stat().st_size
            return size in by_size and sha256_file(path) in digests(size)
        except OSError:  # it will be left out as a picture that cannot be read
            return False

    return is_copy


def _bytes(image: Image) -> int:
    return image.nbytes
