"""What makes a mask of a crop, and what its makers share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import EnvironmentLacks
from tk.runtime.preprocess import Image

Answer = tuple[NDArray[np.bool_], float]
"""A mask (H, W) bool and the IoU, 0..1, that the model itself expects of it."""

_RELEASED = re.compile(r"(sam2(?:\.1)?)_hiera_(tiny|small|base_plus|large)")
_SHORT = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


class Masker(Protocol):
    """A model that cuts the one object out of each crop."""

    def masks(self, images: Sequence[Image]) -> list[Answer]:
        """Ask for the object inside the box of the whole crop.

        Args:
            images: crops of any sizes, each (H, W, 3) uint8 RGB.

        Returns:
            one answer per crop: of the three masks offered for the box, the one with the highest
            predicted IoU.
        """


class LazyMasker:
    """A masker that is opened when the first crop comes, so a run without work needs no model."""

    def __init__(self, opener: Callable[[], Masker]) -> None:
        self._opener = opener
        self._masker: Masker | None = None

    def masks(self, images: Sequence[Image]) -> list[Answer]:
        """As `Masker.masks`; the first call may raise what opening raises."""
        if self._masker is None:
            self._masker = self._opener()
        return self._masker.masks(images)


def lacks(package: str, extra: str) -> EnvironmentLacks:
    """The error for a package that is not installed."""
    return EnvironmentLacks(
        f"masks by SAM-2 need the package {package!r}", fix=f"pip install 'tk-vision[{extra}]'"
    )


def config_for(checkpoint: str) -> str:
    """Configuration that belongs to a released checkpoint, by its file name; else empty."""
    match = _RELEASED.search(checkpoint)
    if match is None:
        return ""
    return f"configs/{match[1]}/{match[1]}_hiera_{_SHORT[match[2]]}.yaml"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Text of an error in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:limit].rstrip(": ")
