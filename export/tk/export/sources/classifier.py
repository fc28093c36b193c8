"""Classifiers -> one part: a head (feature in), a chain of backbone and head, or a student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sources.features import features_of
from tk.export.sources.licence import licence_of_training
from tk.export.sources.source import DEFAULT_BATCH, Source
from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part, TensorSpec
from tk.train.classifier.checkpoint import Loaded, load_classifier, load_encoder, make_chain
from tk.train.embedder.features import weights_digest
from tk.train.run.checkpoint import config_of, crop_spec_of


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Rebuild a classifier and describe it; with `source.backbone`, the chain of both.

    Raises:
        TkError: a checkpoint is damaged, or the head was trained on features of another backbone.
    """
    loaded = load_classifier(source.path)
    facts: dict[str, Any] = {"step": loaded.state["step"], "best": loaded.state.get("best")}
    licence = licence_of_training(config_of(loaded.state))
    if source.backbone is not None:
        encoder, spec = load_encoder(source.backbone)
        chain = make_chain(loaded, encoder)
        architecture = replace(loaded.architecture, input="image")
        facts["backbone"] = {"file": source.backbone.name, "weights": weights_digest(encoder)}
        loaded = replace(loaded, model=chain, architecture=architecture, image_spec=spec)
        licence = f"head: own weights; backbone {architecture.model_id}: not stated with the file"
    elif loaded.architecture.input == "feature":
        licence = "own weights (the head alone)"
    return _describe(loaded, source, max_batch or DEFAULT_BATCH, facts, licence)


def _describe(
    loaded: Loaded, source: Source, max_batch: int, facts: dict[str, Any], licence: str
) -> ExportModel:
    architecture, image = loaded.architecture, loaded.image_spec
    alone = architecture.input == "feature"
    name, given = "image", TensorSpec("image", "uint8", ("B", image.height, image.width, 3), "RGB")
    rows, rows_from = None, ""
    if alone:
        meaning = f"of {architecture.model_id} at {architecture.img_size} pixels"
        name, given = (
            "feature",
            TensorSpec("feature", "float32", ("B", architecture.features), meaning),
        )
        rows, rows_from = features_of(
            source.path, architecture.backbone_sha256, architecture.features
        )

    def feed(given_rows: NDArray[Any], batch: int) -> Arrays:
        return {name: np.ascontiguousarray(repeat_rows(given_rows, batch))}

    shape = ("B", len(loaded.classes))
    outputs = (
        TensorSpec("probabilities", "float32", shape, "rows sum to 1"),
        TensorSpec("logits", "float32", shape, "before the softmax"),
    )
    settings = {
        "input": architecture.input,
        "model_id": architecture.model_id,
        "img_size": architecture.img_size,
        "features": architecture.features,
        "hidden": list(architecture.head.hidden),
        "backbone_sha256": architecture.backbone_sha256,
    }
    return ExportModel(
        task="classifier",
        parts={"model": ExportPart(loaded.model, Part((given,), outputs, max_batch), feed)},
        image=image,
        crop=crop_spec_of(loaded.state),
        classes=loaded.classes,
        settings=settings,
        source=facts,
        licence=licence,
        checkpoint=source.path,
        rows=rows,
        rows_from=rows_from,
    )
