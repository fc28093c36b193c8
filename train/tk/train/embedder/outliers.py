"""Suspected mislabelled crops: those far from the centre that most of their class gathers at."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import write_bytes

COLUMNS = ("file", "class", "reason", "angle", "nearest_class", "nearest_angle", "sub_centre")


@dataclass(frozen=True)
class Outlier:
    """One suspected crop; angles in degrees, 0..180, to the dominant sub-centre of a class.

    Attributes:
        index: row of the crop.
        label: the class it is filed under.
        angle: to its own class.
        sub_centre: the sub-centre of its own class that it is nearest to.
        nearest_class: the nearest other class; -1 if no other class has a crop.
        nearest_angle: to that class; NaN without one.
        nearer: it belongs to the nearest class rather than to its own; otherwise it is only far
            from its class (a bad crop, an unknown object, or a rare view).
    """

    index: int
    label: int
    angle: float
    sub_centre: int
    nearest_class: int
    nearest_angle: float
    nearer: bool

    def reason(self, classes: Sequence[str]) -> str:
        """Why it is suspected, in words."""
        if self.nearer:
            return f"nearer to {classes[self.nearest_class]}"
        return "far from its class"


def dominant_sub_centres(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], centres: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The sub-centre of each class that most of its crops are nearest to.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0..C-1.
        centres: (C, K, D) float32, unit length.

    Returns:
        (C,) int64, 0..K-1; -1 for a class without crops. The first one wins a tie.
    """
    found = np.full(len(centres), -1, np.int64)
    for label in np.unique(labels):
        nearest = (embeddings[labels == label] @ centres[label].T).argmax(axis=1)
        found[label] = np.bincount(nearest).argmax()
    return found


def far_from_class(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    centres: NDArray[np.float32],
    *,
    angle: float = 75.0,
) -> NDArray[np.int64]:
    """Crops further than `angle` from their class's dominant sub-centre (Deng et al., 2020).

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0..C-1.
        centres: (C, K, D) float32, unit length.
        angle: degrees.

    Returns:
        (M,) int64 rows, ascending.
    """
    dominant = dominant_sub_centres(embeddings, labels, centres)
    own = centres[labels, dominant[labels]]
    cos = np.einsum("nd,nd->n", embeddings, own)
    return np.flatnonzero(cos < math.cos(math.radians(angle))).astype(np.int64)


def find_outliers(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    centres: NDArray[np.float32],
    *,
    angle: float = 75.0,
) -> list[Outlier]:
    """List crops that are far from their class, or nearer to another one.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0..C-1.
        centres: (C, K, D) float32, unit length: `CosineHead.centres()` of the trained head.
        angle: degrees from the dominant sub-centre of its class beyond which a crop is suspected.

    Returns:
        The most suspicious first: the one that is most degrees beyond the limit it broke, which
        is `angle` or the nearest other class, whichever is less.

    Raises:
        TkError: shapes do not fit, a label is no class, or an embedding is not finite.
    """
    _check(embeddings, labels, centres, angle)
    far = np.zeros(len(labels), bool)
    far[far_from_class(embeddings, labels, centres, angle=angle)] = True
    own, other, nearest = _angles(embeddings, labels, centres)
    # At the same great distance from every class, the nearest one says nothing.
    nearer = (nearest < own) & (nearest <= angle)
    rows = np.flatnonzero(far | nearer)
    beyond = (own - np.minimum(nearest, angle))[rows]
    return [
        Outlier(
            index=int(i),
            label=int(labels[i]),
            angle=float(own[i]),
            sub_centre=int((centres[labels[i]] @ embeddings[i]).argmax()),
            nearest_class=int(other[i]),
            nearest_angle=math.nan if other[i] < 0 else float(nearest[i]),
            nearer=bool(nearer[i]),
        )
        for i in rows[np.argsort(-beyond, kind="stable")]
    ]


def write_outliers(
    path: Path, outliers: Sequence[Outlier], files: Sequence[str], classes: Sequence[str]
) -> None:
    """Write a CSV file (UTF-8), one suspected crop a line, in the order given.

    Args:
        path: the file; replaced atomically.
        outliers: what `find_outliers` returned.
        files: (N,) name of every crop, in the order of the embeddings.
        classes: (C,) class names.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outlier in outliers:
        alone = outlier.nearest_class < 0
        writer.writerow(
            (
                files[outlier.index],
                classes[outlier.label],
                outlier.reason(classes),
                f"{outlier.angle:.1f}",
                "" if alone else classes[outlier.nearest_class],
                "" if alone else f"{outlier.nearest_angle:.1f}",
                outlier.sub_centre,
            )
        )
    # A file name that was no valid UTF-8 on disk must not cost the whole list.
    write_bytes(path, text.getvalue().encode("utf-8-sig", "backslashreplace"))


def _angles(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], centres: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Each crop's degrees to its own class, its nearest other class, and degrees to that.

    All (N,); without another class that has crops, the nearest is -1 at infinity.
    """
    dominant = dominant_sub_centres(embeddings, labels, centres)
    used = np.flatnonzero(dominant >= 0)
    axes = centres[used, dominant[used]].astype(np.float64)
    own, nearest = np.zeros(len(labels)), np.full(len(labels), np.inf)
    other = np.full(len(labels), -1, np.int64)
    for column, label in enumerate(used):
        rows = labels == label
        cos = (embeddings[rows].astype(np.float64) @ axes.T).clip(-1, 1)
        own[rows] = np.degrees(np.arccos(cos[:, column]))
        if len(used) > 1:
            cos[:, column] = -np.inf
            other[rows] = used[cos.argmax(axis=1)]
            nearest[rows] = np.degrees(np.arccos(cos.max(axis=1)))
    return own, other, nearest


def _check(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    centres: NDArray[np.float32],
    angle: float,
) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or centres.ndim != 3:
        raise TkError(
            "outliers: the arrays do not fit each other",
            expected="embeddings (N, D), labels (N,), centres (C, K, D)",
            found=f"{embeddings.shape}, {labels.shape}, {centres.shape}",
        )
    if embeddings.shape[1] != centres.shape[2]:
        raise TkError(
            "outliers: embeddings and centres differ in length",
            expected=str(centres.shape[2]),
            found=str(embeddings.shape[1]),
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < len(centres):
        raise TkError(
            "outliers: a label is no class",
            expected=f"0..{len(centres) - 1}",
            found=f"{labels.min()}..{labels.max()}",
        )
    if not np.isfinite(embeddings).all():
        raise TkError("outliers: an embedding is not finite", fix="check the training's loss")
    if not 0 < angle < 180:
        raise TkError("outliers: angle out of range", expected="0..180 degrees", found=f"{angle:g}")
