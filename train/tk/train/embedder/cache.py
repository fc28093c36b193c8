"""Pictures in memory, up to a bound; beyond it they are read from disk on every use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from tk.runtime.errors import TkError
from tk.runtime.images import ImageError
from tk.train.embedder.data import CropFile

T = TypeVar("T")


@dataclass
class Budget:
    """Memory that is left, in bytes; several caches may share one."""

    left: int


class Cache(Generic[T]):
    """What `make` gives for every crop; crops that cannot be read are left out.

    Args:
        crops: files to read; each is read once here, so a broken one is found before training.
        make: crop -> value; raises ImageError for a crop to leave out.
        size: value -> bytes it holds.
        budget: how much may be kept.

    Attributes:
        crops: the readable ones.
        skipped: one sentence per crop left out.
    """

    def __init__(
        self,
        crops: Sequence[CropFile],
        make: Callable[[CropFile], T],
        size: Callable[[T], int],
        budget: Budget,
    ) -> None:
        self.make = make
        self.crops: list[CropFile] = []
        self.skipped: list[str] = []
        self._kept: list[T | None] = []

        def attempt(crop: CropFile) -> T | ImageError:
            try:
                return make(crop)
            except ImageError as error:
                return error

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for crop, value in zip(crops, pool.map(attempt, crops), strict=True):
                if isinstance(value, ImageError):
                    self.skipped.append(value.what)
                    continue
                bytes_ = size(value)
                keep = bytes_ <= budget.left
                budget.left -= bytes_ if keep else 0
                self.crops.append(crop)
                self._kept.append(value if keep else None)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> T:
        value = self._kept[index]
        if value is not None:
            return value
        try:
            return self.make(self.crops[index])
        except ImageError as error:
            raise TkError(f"a file changed during the training: {error.what}") from None
