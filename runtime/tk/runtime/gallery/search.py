"""Prototype search: similarity of embeddings to the classes of a gallery (FAISS inner product)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.devices import parse_device
from tk.runtime.errors import TkError
from tk.runtime.gallery.faiss_device import GpuCopies, load_faiss, stays_on_cpu
from tk.runtime.gallery.gallery import Gallery, SearchMode

SMALL = 100_000
"""References below which FAISS runs on one thread: its threads cost more than they bring, and on a
shared machine they can stall for seconds (OpenMP busy waiting)."""


class PrototypeSearch:
    """Cosine similarity to every class.

    `centroid` compares with the mean of a class, `stack` with its nearest reference, `sub` with its
    nearest sub-prototype. All are exact: one flat index of centroids, or one flat index per class,
    searched for one neighbour.

    Args:
        gallery: unit vectors.
        mode: what to compare with.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; see `faiss_device`.

    Attributes:
        classes, mode: as given.
        place: one line, where it searches and why there.

    Raises:
        TkError: no classes, or `sub` of a gallery without sub-prototypes.
        EnvironmentLacks: FAISS is not installed, or the GPU is too small.
    """

    def __init__(
        self, gallery: Gallery, mode: SearchMode = "centroid", device: str = "auto"
    ) -> None:
        wish = parse_device(device)
        self._faiss: Any = load_faiss()
        if not gallery.classes:
            raise TkError("the gallery has no classes", fix="tk gallery build")
        rows, labels = gallery.vectors(mode)
        self._small = len(rows) < SMALL
        self.classes, self.mode = gallery.classes, mode
        each = range(len(gallery.classes))
        groups = [rows] if mode == "centroid" else [rows[labels == i] for i in each]
        self._indexes = [self._flat(vectors) for vectors in groups]
        reason = stays_on_cpu(self._faiss, wish, len(each) if mode == "centroid" else 1)
        self.place = f"FAISS on the CPU ({reason})" if reason else f"FAISS on GPU {wish.index}"
        self._copies = None if reason else GpuCopies(self._faiss, wish.index)
        if self._copies is not None:
            self._indexes = [
                self._copies.copy(index) if index.ntotal else index for index in self._indexes
            ]

    def _flat(self, vectors: NDArray[np.float32]) -> Any:
        index = self._faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        return index

    def similarity(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compare embeddings with all classes.

        Args:
            embeddings: (N, D) float32, unit length.

        Returns:
            (N, C) float32 cosine, -1..1; a class without references is -1.
        """
        count = len(self.classes)
        result = np.full((len(embeddings), count), -1, np.float32)
        if not len(embeddings):
            return result
        if self._small:
            # Each time: other libraries in the process set the same number behind our back.
            self._faiss.omp_set_num_threads(1)
        if self.mode == "centroid":
            values, ids = self._search(self._indexes[0], embeddings, count)
            np.put_along_axis(result, ids, values, axis=1)
        else:
            for column, index in enumerate(self._indexes):
                if index.ntotal:
                    result[:, column] = self._search(index, embeddings, 1)[0][:, 0]
        return result

    def _search(self, index: Any, queries: NDArray[np.float32], count: int) -> tuple[Any, Any]:
        if self._copies is not None and index.ntotal:
            return self._copies.search(index, queries, count)
        values, ids = index.search(queries, count)
        return values, ids
