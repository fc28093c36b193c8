"""What pictures give away without any training: the figures that a pre-training has to beat.

On easy data the floors are high (digits of 8 x 8 pixels: 97 % from raw pixels), so a figure without
its floors proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.train.ssl.probes.features import Features, Labels
from tk.train.ssl.probes.knn import knn_accuracy
from tk.train.ssl.probes.linear import linear_accuracy

Image = NDArray[np.uint8]
Encode = Callable[[NDArray[np.uint8]], Features]
"""(n, side, side, 3) uint8 RGB -> (n, D) features."""

BATCH = 256


def probe_figures(features: Features, labels: Labels, asked: NDArray[np.bool_]) -> dict[str, float]:
    """Figures of features by three probes.

    Args:
        features: (N, D).
        labels: (N,) classes from 0.
        asked: (N,) true for the questions, false for the references.

    Returns:
        `knn_1`, `knn_20` and `linear`: accuracies, 0..1.

    Raises:
        TkError, CheckFailed: as the probes do.
    """
    parts = features[~asked], labels[~asked], features[asked], labels[asked]
    return {
        "knn_1": knn_accuracy(*parts, k=1),
        "knn_20": knn_accuracy(*parts, k=20),
        "linear": linear_accuracy(*parts),
    }


def floors(
    images: Sequence[Image],
    labels: Labels,
    asked: NDArray[np.bool_],
    side: int,
    untrained: Encode | None = None,
) -> dict[str, dict[str, float]]:
    """Figures of raw pixels and of a network with random weights.

    Args:
        images: N pictures, (H, W, 3) uint8 RGB of any sizes; all are stretched to one size.
        labels, asked: as for `probe_figures`.
        side: of the squares that raw pixels and the network see, pixels.
        untrained: the network.

    Returns:
        `raw_pixels` and, with a network, `untrained` -> `probe_figures`.

    Raises:
        TkError: no pictures; else as `probe_figures`.
    """
    if not images:
        raise TkError("floors need labelled pictures", expected="one or more", found="none")
    squares = np.stack([_square(image, side) for image in images])
    pixels = squares.reshape(len(squares), -1).astype(np.float32)
    found = {"raw_pixels": probe_figures(pixels, labels, asked)}
    if untrained is not None:
        starts = range(0, len(squares), BATCH)
        rows = np.concatenate([untrained(squares[i : i + BATCH]) for i in starts])
        found["untrained"] = probe_figures(rows, labels, asked)
    return found


def _square(image: Image, side: int) -> Image:
    """Stretch to (side, side, 3); averaging where it becomes smaller."""
    if image.shape[:2] == (side, side):
        return image
    how = cv2.INTER_AREA if max(image.shape[:2]) > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (side, side), interpolation=how), np.uint8)
