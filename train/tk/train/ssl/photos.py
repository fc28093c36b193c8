"""Loose pictures to learn from without labels: one or several folders, searched whole.

Which files are samples is settled at the start, from their headers alone, so it depends neither on
workers nor on memory. A file that turns out to be damaged when it is decoded is replaced by the
next one that is not, the same in every process, and is reported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.images import ImageError, find_images, image_size, read_image, relative_name

Image = NDArray[np.uint8]

LEAST_STD = 1 / 255
"""Of a channel: pictures without any contrast must not divide by zero."""


@dataclass(frozen=True)
class PhotoFile:
    """One picture.

    Attributes:
        path: the file.
        name: relative to the folder that was searched, after the number of that folder.
        width, height: pixels, as stored in the file.
        bytes: size of the file.
    """

    path: Path
    name: str
    width: int
    height: int
    bytes: int


class Photos:
    """Pictures by number.

    Args:
        files: what can be read, in a fixed order.
        skipped: one sentence per file that was left out.
        ram_gb: memory for decoded pictures, GB; those that do not fit are read on every use.

    Attributes:
        files, skipped: as given.
    """

    def __init__(
        self, files: Sequence[PhotoFile], skipped: Sequence[str] = (), ram_gb: float = 0.0
    ) -> None:
        self.files, self.skipped = tuple(files), tuple(skipped)
        # Shared memory: what a worker finds broken, the training process reports.
        self._broken = torch.zeros(len(self.files), dtype=torch.uint8)
        self._broken.share_memory_()  # type: ignore[no-untyped-call]
        self._kept: dict[int, Image] = {}
        self._fill(ram_gb * 1e9)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Image:
        """Decode a picture; a broken one is replaced by the next that is not.

        Args:
            index: 0 to len(self) - 1.

        Returns:
            (H, W, 3) uint8 RGB, upright.

        Raises:
            TkError: no picture at all can be decoded.
        """
        for offset in range(len(self.files)):
            place = (index + offset) % len(self.files)
            image = self._decode(place)
            if image is not None:
                return image
        raise TkError(
            "none of the pictures can be decoded any more",
            expected=f"{len(self.files)} readable files",
            found=self.broken()[0],
            fix="look whether the disk is still there",
        )

    def broken(self) -> list[str]:
        """Names of pictures that could not be decoded, here or in a worker of this run."""
        return [self.files[int(i)].name for i in torch.nonzero(self._broken).ravel()]

    def smaller_than(self, size: int) -> int:
        """Count the pictures with a side below `size` pixels: their crops are enlarged."""
        return sum(min(file.width, file.height) < size for file in self.files)

    def facts(self) -> dict[str, str]:
        """Number and fingerprint of names and sizes: another data set has others."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.bytes}\n".encode())
        return {"photos": f"{len(self.files)} files {digest.hexdigest()[:16]}"}

    def statistics(
        self, seed: int = 0, sample: int = 1000
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of the channels, every picture weighing the same.

        Args:
            seed: chooses the pictures when there are more than `sample`.
            sample: most pictures to read.

        Returns:
            mean and std of R, G, B in units of 255; a std is at least 1/255.
        """
        count = min(sample, len(self.files))
        chosen = np.random.default_rng((seed, len(self.files))).permutation(len(self.files))[:count]
        means, squares = np.zeros(3), np.zeros(3)
        for index in np.sort(chosen):
            levels = self.read(int(index)).reshape(-1, 3) / 255.0
            means += levels.mean(axis=0) / count
            squares += np.square(levels).mean(axis=0) / count
        stds = np.sqrt(np.maximum(squares - means**2, LEAST_STD**2))
        return _triple(means), _triple(stds)

    def _decode(self, place: int) -> Image | None:
        kept = self._kept.get(place)
        if kept is not None:
            return kept
        if self._broken[place]:
            return None
        try:
            return read_image(self.files[place].path)
        except ImageError:
            self._broken[place] = 1
            return None

    def _fill(self, budget: float) -> None:
        """Decode as many pictures, from the first on, as fit into the memory."""
        sizes = np.cumsum([3 * file.width * file.height for file in self.files])
        places = range(int(np.searchsorted(sizes, budget, side="right")))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for place, image in zip(places, pool.map(self._decode, places), strict=True):
                if image is not None:
                    self._kept[place] = image


def find_photos(dirs: Sequence[Path], *, ram_gb: float = 0.0) -> Photos:
    """Find the pictures under folders.

    Args:
        dirs: folders, searched with all that is in them, or single files; a file that is reached
            twice counts once.
        ram_gb: as for `Photos`.

    Raises:
        TkError: no folder, a missing or empty one, or fewer than two usable pictures in all.
    """
    if not dirs:
        raise TkError("no folder of pictures", expected="one or more", fix="--train-dir FOLDER")
    seen: set[str] = set()
    places: list[tuple[Path, str]] = []
    for number, folder in enumerate(dirs):
        for path in find_images(folder):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                places.append((path, f"{number}/{relative_name(path, folder)}"))
    files, skipped = _look(places)
    if len(files) < 2:
        raise TkError(
            "too few pictures to learn from: one has nothing to differ from",
            expected="two usable pictures at the very least, hundreds to learn anything",
            found=f"{len(files)} usable, {len(skipped)} broken"
            + (f" ({skipped[0]})" if skipped else ""),
            fix="add pictures, or another --train-dir",
        )
    return Photos(files, skipped, ram_gb)


def _look(places: Sequence[tuple[Path, str]]) -> tuple[list[PhotoFile], list[str]]:
    """Read the headers of all files: usable ones and one sentence for each of the others."""

    def attempt(place: tuple[Path, str]) -> PhotoFile | ImageError:
        path, name = place
        try:
            width, height = image_size(path)
            return PhotoFile(path, name, width, height, path.stat().st_size)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(attempt, places))
    files = [one for one in found if isinstance(one, PhotoFile)]
    return files, [one.what for one in found if isinstance(one, ImageError)]


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
