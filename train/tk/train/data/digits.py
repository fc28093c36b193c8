"""Real pictures without a network: the handwritten digits that come with scikit-learn, as crops."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder

SIDE = 8
"""Side of the pictures in the data set, pixels."""

OWN = "0/cropped/0000.png"
"""A file by which a folder of digits is known."""


def write_digits(out: Path, *, size: int = 64, overwrite: bool = False) -> int:
    """Write the 1797 digits as `out/<class>/cropped/<index>.png`, classes `0` to `9`.

    The index is the place in the data set, so the files are the same everywhere.

    Args:
        out: the folder to make; it appears only when it is whole.
        size: side of the pictures in pixels, 8 or greater; 8 keeps the pixels of the data set, grey
            levels 0..16 as 0..255, larger ones are interpolated.
        overwrite: replace `out` where it exists and is not empty.

    Returns:
        number of pictures.

    Raises:
        TkError: `size` is below 8, or `out` is not empty and `overwrite` is false.
    """
    from sklearn.datasets import load_digits

    if size < SIDE:
        raise TkError("--size is too small", expected=f"{SIDE} or more", found=str(size))
    digits = load_digits()
    with atomic_folder(out, overwrite=overwrite, own=OWN) as folder:
        for name in digits.target_names:
            (folder / str(name) / "cropped").mkdir(parents=True)
        for index, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            picture = enlarge(np.rint(levels * (255 / 16)).astype(np.uint8), size)
            _, data = cv2.imencode(".png", picture)
            name = digits.target_names[label]
            (folder / str(name) / "cropped" / f"{index:04d}.png").write_bytes(data.tobytes())
    return len(digits.target)


def enlarge(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a square picture.

    Args:
        picture: (S, S) uint8.

    Returns:
        (size, size) uint8.
    """
    if size == len(picture):
        return picture
    resized = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)
