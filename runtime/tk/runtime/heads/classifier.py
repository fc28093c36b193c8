"""Classifier: pictures in, probabilities of classes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Session
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.preprocess import Image, fit


class Classifier:
    """Says what pictures show, in batches.

    Args:
        bundle: of task `classifier`, whose graph sees pictures.
        session_options: passed to `Bundle.session` (device, precision, backend, threads).

    Attributes:
        classes: names, in the order of the probabilities.

    Raises:
        TkError: the bundle holds a head alone, which takes features.
    """

    def __init__(self, bundle: Bundle, **session_options: Any) -> None:
        self.manifest = bundle.manifest
        if "image" not in [spec.name for spec in self.manifest.parts["model"].inputs]:
            settings = self.manifest.settings
            raise TkError(
                f"bundle {bundle.path} holds a head alone: it takes features, not pictures",
                expected="backbone and head in one graph, or a student",
                found=f"a head on features of {settings.get('model_id', 'another model')}",
                fix="tk export HEAD.pth OUT --backbone BACKBONE.pth --images DIR",
            )
        self.classes = self.manifest.classes
        self.sha256 = bundle.sha256
        self.session: Session = bundle.session("model", **session_options)

    @property
    def max_batch(self) -> int:
        """Largest batch that the gate proved."""
        return self.manifest.parts["model"].max_batch

    def canvas(self, image: Image) -> Image:
        """Put a picture on the canvas of the model; may be called in threads."""
        return fit(self.manifest.image, image)[0]

    def run(self, canvases: Sequence[Image]) -> NDArray[np.float32]:
        """Classify what `canvas` gave: (N, C) float32, rows sum to 1."""
        rows: list[NDArray[np.float32]] = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(canvases), self.max_batch):
            chunk = np.stack(canvases[start : start + self.max_batch])
            found = self.session.run({"image": chunk})["probabilities"]
            rows.append(np.asarray(found, np.float32))
        return np.concatenate(rows)

    def classify(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Classify pictures.

        Args:
            images: each (H, W, 3) uint8 RGB, any sizes.

        Returns:
            (N, C) float32 probabilities, rows sum to 1.
        """
        return self.run([self.canvas(image) for image in images])
