"""Class prototypes from the trained embedder: `prototypes.npz`, readable without pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import write_bytes
from tk.runtime.gallery.build import class_centroids
from tk.runtime.gallery.gallery import Gallery


def write_prototypes(
    path: Path,
    classes: tuple[str, ...],
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> None:
    """Write `centroids (C, D)`, `stacks (N, D)`, `stack_labels (N,)`, `id2cls (C,)`, `cls2id`.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0..C-1; every class occurs.

    Raises:
        TkError: a class without any embedding.
    """
    empty = [name for i, name in enumerate(classes) if not (labels == i).any()]
    if empty:
        raise TkError("classes without a reference for their prototype", found=", ".join(empty))
    centroids = class_centroids(embeddings, labels, len(classes))
    write_bytes(path, Gallery(classes, centroids, embeddings, labels).to_npz())
