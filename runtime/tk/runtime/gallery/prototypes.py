"""From reference embeddings to the prototypes of a gallery."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import Gallery, SearchMode
from tk.runtime.gallery.sub_prototypes import sub_prototypes as find_sub_prototypes

CELLS = 1 << 24
"""Similarities held in memory at a time, at most (64 MiB), as long as one row fits."""


def make_gallery(
    classes: tuple[str, ...],
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    sub_prototypes: int = 0,
    seed: int = 0,
) -> Gallery:
    """Make all prototypes of a gallery; thresholds and facts are left empty.

    Args:
        classes: (C,) names.
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0 to C - 1; every class occurs.
        sub_prototypes: centres per class, 0 for none.
        seed: of the sub-prototypes.

    Raises:
        TkError: a class without a reference.
    """
    centroids = class_centroids(embeddings, labels, len(classes), classes)
    sub_centroids, sub_labels = None, None
    if sub_prototypes:
        sub_centroids, sub_labels = find_sub_prototypes(
            embeddings, labels, len(classes), sub_prototypes, seed
        )
    return Gallery(
        classes,
        centroids,
        embeddings,
        labels,
        sub_centroids=sub_centroids,
        sub_labels=sub_labels,
    )


def class_centroids(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    count: int,
    names: tuple[str, ...] = (),
) -> NDArray[np.float32]:
    """Mean of the unit vectors of each class, made unit length again.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0 to count - 1; every class occurs.
        count: number of classes C.
        names: of the classes, for the error's text.

    Returns:
        (C, D) float32.

    Raises:
        TkError: a class without a reference.
    """
    sizes = np.bincount(labels, minlength=count)
    if not sizes.all():
        empty = [names[i] if names else str(i) for i in np.flatnonzero(sizes == 0)]
        raise TkError("classes without a reference for their prototype", found=", ".join(empty))
    means = np.stack([embeddings[labels == index].mean(axis=0) for index in range(count)])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.maximum(norms, 1e-12), np.float32)


def class_similarity(
    gallery: Gallery, mode: SearchMode, embeddings: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compare embeddings with all classes as `PrototypeSearch` does, without FAISS.

    Training calibrates with it: FAISS belongs to the runtime's extras.

    Args:
        gallery: every class has a vector in `mode`.
        mode: what to compare with.
        embeddings: (N, D) float32, unit length.

    Returns:
        (N, C) float32 cosine, -1..1.
    """
    rows, labels = gallery.vectors(mode)
    order = np.argsort(labels, kind="stable")
    keys = rows[order].T
    firsts = np.searchsorted(labels[order], np.arange(len(gallery.classes)))
    step = max(1, CELLS // len(order))
    parts = [
        np.maximum.reduceat(embeddings[start : start + step] @ keys, firsts, axis=1)
        for start in range(0, len(embeddings), step)
    ]
    return np.concatenate([np.zeros((0, len(gallery.classes)), np.float32), *parts])
