"""A Hugging Face GroundingDINO or MM-GroundingDINO -> parts `text` and `model`.

Measured for the tiny one on 1024x1024 pixels, one thread: 320 s of CPU for export and gate (batches
1 and 2), 7.0 GB at the peak; text: 568 nodes, 347 MB (90 MB more with all 30522 words); model:
3296 nodes, 303 MB, 13 s for one picture. MM-GroundingDINO tiny is the same within 3 %.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tk.export.grounding.compare import cut_model
from tk.export.grounding.load import Loaded, exportable, load_model
from tk.export.grounding.parts import BakedPart, ModelPart, TextPart
from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sources.source import Source
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import TkError
from tk.runtime.heads.text_detector import TOKENIZER
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import ImageSpec
from tk.runtime.text.masks import DELIMITERS
from tk.runtime.text.tokenizer import Prompt

SIZE = (1024, 1024)
"""As many pixels as the library's 800x1333, in either orientation."""

PICTURES, PROMPTS = 4, 4
"""Per call, when nobody asks for a number: a picture of 1024 pixels needs about 1 GB."""

VALID = ((1.0, 1.0), (1.0, 0.72), (0.55, 1.0))
"""Shares of the canvas that the gate calls picture: full, upright, wide."""


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Open the library's model, compare our cut of it with the library, and describe it.

    Raises:
        TkError: see `load_model`; a canvas that is too small; a prompt that cannot be baked.
        CheckFailed: this version of the library computes something else than we do.
    """
    loaded = load_model(source.path)
    size = source.size or SIZE
    prompt = loaded.tokenizer.read(source.prompt) if source.prompt else None
    part, text = _cut(loaded, size)
    config = loaded.network.config
    return ExportModel(
        task="detector",
        parts=_parts(loaded, part, text, prompt, max_batch or PICTURES),
        image=ImageSpec(*size, anchor="corner", interpolation="linear", pad=0),
        crop=None,
        classes=(),
        settings={
            "text": {
                "max_tokens": loaded.tokenizer.limit,
                "cleanup": loaded.cleanup,
                "baked": prompt.text if prompt else "",
            }
        },
        source={"model_type": config.model_type, "name": source.name},
        licence=source.licence or "not stated",
        checkpoint=loaded.weights,
        files={TOKENIZER: loaded.tokenizer_json},
    )


def _cut(loaded: Loaded, size: tuple[int, int]) -> tuple[ModelPart, TextPart]:
    prompt = gate_prompt(1, int(loaded.network.config.text_config.vocab_size))
    try:
        return cut_model(loaded, size, prompt)
    except (ValueError, RuntimeError) as error:
        raise TkError(
            f"this detector cannot work on a canvas of {size[0]}x{size[1]} pixels",
            expected=f"at least {loaded.network.config.num_queries} places, one per query",
            found=str(error),
            fix="give a larger --size, for example 512x512",
        ) from None


def _parts(
    loaded: Loaded, part: ModelPart, text: TextPart, prompt: Prompt | None, max_batch: int
) -> dict[str, ExportPart]:
    height, width = part.canvas
    queries, depth = part.queries, int(loaded.network.config.d_model)
    tokens: int | str = len(prompt.ids) if prompt else "T"
    image = TensorSpec("image", "uint8", ("B", height, width, 3), "RGB canvas")
    hw = TensorSpec("valid_hw", "int32", ("B", 2), "rows and columns that are picture")
    boxes = TensorSpec("boxes", "float32", ("B", queries, 4), "xyxy, canvas pixels")
    scores = TensorSpec("token_scores", "float32", ("B", queries, tokens), "0..1 per token")

    def patch() -> AbstractContextManager[None]:
        return exportable(loaded.network)

    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return _pictures(canvases, batch)

    if prompt is not None:
        inputs = _model_inputs(text, prompt)
        names = ("text_features", "text_mask", "position_ids")
        baked = BakedPart(part, *(torch.from_numpy(inputs[name]) for name in names)).eval()
        return {
            "model": ExportPart(baked, Part((image, hw), (boxes, scores), max_batch), feed, patch)
        }

    vocabulary = int(loaded.network.config.text_config.vocab_size)

    def feed_model(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        # At 2, of which the probe is made, the prompt of `feed_text` at 1; else one of another
        # length, with a token of padding: the prompt is as free as the batch.
        probe = batch == min(2, max_batch)
        wanted = gate_prompt(0 if probe else batch, vocabulary)
        padding = int(not probe)
        return feed(canvases, batch) | _model_inputs(text, wanted, len(wanted.ids) + padding)

    def feed_text(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        prompts = [gate_prompt(index, vocabulary) for index in range(batch)]
        length = max(len(own.ids) for own in prompts)
        rows = [own.text_inputs(length) for own in prompts]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    features = TensorSpec("text_features", "float32", ("N", "T", depth), "of one prompt")
    limits = {"T": loaded.tokenizer.limit}
    text_inputs = (
        TensorSpec("input_ids", "int32", ("N", "T"), "tokens of the prompt"),
        TensorSpec("text_mask", "bool", ("N", "T", "T"), "which tokens see each other"),
        TensorSpec("position_ids", "int32", ("N", "T"), "place of a token in its phrase"),
    )
    model_inputs = (
        *(image, hw, replace(features, shape=(1, "T", depth))),
        TensorSpec("text_mask", "bool", (1, "T", "T"), "which tokens see each other"),
        TensorSpec("token_mask", "bool", (1, "T"), "False for padding"),
        TensorSpec("position_ids", "int32", (1, "T"), "place of a token in its phrase"),
    )
    return {
        "text": ExportPart(text, Part(text_inputs, (features,), PROMPTS, limits), feed_text, patch),
        "model": ExportPart(
            part, Part(model_inputs, (boxes, scores), max_batch, limits), feed_model, patch
        ),
    }


def gate_prompt(index: int, vocabulary: int) -> Prompt:
    """Make the `index`-th prompt of the gate: 1 to 3 phrases of 1 to 3 tokens of any meaning."""
    random = np.random.default_rng(index)
    start, dot, end = DELIMITERS["[CLS]"], DELIMITERS["."], DELIMITERS["[SEP]"]
    ids = [start]
    for _ in range(1 + index % 3):
        ids += [int(i) for i in random.integers(1, vocabulary, random.integers(1, 4))] + [dot]
    return Prompt("", (*ids, end))


def _pictures(canvases: NDArray[np.uint8], batch: int) -> Arrays:
    """Canvases with valid parts of several shapes."""
    size = np.asarray(canvases.shape[1:3])
    shares = np.asarray([VALID[index % len(VALID)] for index in range(batch)])
    valid = np.maximum(1, (shares * size).astype(np.int32))
    return {"image": repeat_rows(canvases, batch), "valid_hw": valid}


@torch.inference_mode()
def _model_inputs(text: TextPart, prompt: Prompt, length: int = 0) -> Arrays:
    inputs = prompt.text_inputs(length)
    features = text(*(torch.from_numpy(value) for value in inputs.values()))
    return prompt.model_inputs(features.numpy())
