"""Embedder: crops in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Session
from tk.runtime.bundle import Bundle
from tk.runtime.preprocess import CropSpec, Image, fit


class Embedder:
    """Turns crops into embeddings, in batches over all pictures of a group."""

    def __init__(self, bundle: Bundle, **session_options: Any) -> None:
        self.manifest = bundle.manifest
        self.sha256 = bundle.sha256
        self.session: Session = bundle.session("model", **session_options)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Everything that was opened."""
        return (self.session,)

    @property
    def crop(self) -> CropSpec:
        """How a crop must be cut for this model."""
        return self.manifest.crop or CropSpec()

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return int(self.manifest.parts["model"].outputs[0].shape[-1])

    def embed(self, crops: Sequence[Image]) -> NDArray[np.float32]:
        """Embed crops.

        Args:
            crops: each (h, w, 3) uint8 RGB, cut as `crop` says.

        Returns:
            (N, D) float32, unit length.
        """
        rows: list[NDArray[np.float32]] = [np.zeros((0, self.dimension), np.float32)]
        size = self.manifest.parts["model"].max_batch
        for start in range(0, len(crops), size):
            chunk = crops[start : start + size]
            canvas = np.stack([fit(self.manifest.image, crop)[0] for crop in chunk])
            rows.append(np.asarray(self.session.run({"image": canvas})["embedding"], np.float32))
        return np.concatenate(rows)
