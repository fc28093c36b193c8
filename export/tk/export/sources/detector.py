"""Checkpoint of `tk train detector` -> one part: canvas in, boxes and scores out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sources.source import DEFAULT_BATCH, Source
from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part, TensorSpec
from tk.train.detector.model import QUERIES, STRIDE, load_detector
from tk.train.run.checkpoint import classes_of, image_spec_of


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Rebuild the network and describe it.

    Raises:
        TkError: the checkpoint is damaged or of another task.
    """
    network, state = load_detector(source.path)
    image, classes = image_spec_of(state), classes_of(state)
    queries = min(QUERIES, (image.height // STRIDE) * (image.width // STRIDE))
    canvas = TensorSpec("image", "uint8", ("B", image.height, image.width, 3), "RGB canvas")
    boxes = TensorSpec("boxes", "float32", ("B", queries, 4), "xyxy, canvas pixels")
    scores = TensorSpec("scores", "float32", ("B", queries, len(classes)), "0..1, strongest first")

    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    part = ExportPart(network, Part((canvas,), (boxes, scores), max_batch or DEFAULT_BATCH), feed)
    return ExportModel(
        task="detector",
        parts={"model": part},
        image=image,
        crop=None,
        classes=classes,
        settings={},
        source={"step": state["step"], "best": state.get("best")},
        licence="own weights",
        checkpoint=source.path,
    )
