"""Checkpoint of `tk train embedder` -> one part: crop in, unit vector out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sources.licence import licence_of_training
from tk.export.sources.source import DEFAULT_BATCH, Source
from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part, TensorSpec
from tk.train.embedder.train import load_embedder
from tk.train.run.checkpoint import classes_of, config_of, crop_spec_of, image_spec_of


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Rebuild the network and describe it.

    Raises:
        TkError: the checkpoint is damaged or of another task.
    """
    network, state = load_embedder(source.path)
    image, config = image_spec_of(state), config_of(state)
    canvas = TensorSpec(
        "image", "uint8", ("B", image.height, image.width, 3), "RGB crop on the canvas"
    )
    embedding = TensorSpec("embedding", "float32", ("B", int(config["emb_dim"])), "unit length")

    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    part = ExportPart(network, Part((canvas,), (embedding,), max_batch or DEFAULT_BATCH), feed)
    return ExportModel(
        task="embedder",
        parts={"model": part},
        image=image,
        crop=crop_spec_of(state),
        classes=(),
        settings={"trained_on": list(classes_of(state)), "model_id": config["model_id"]},
        source={"step": state["step"], "best": state.get("best")},
        licence=licence_of_training(config),
        checkpoint=source.path,
    )
