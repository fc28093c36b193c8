"""Checkpoint of `tk train segmenter` -> two parts: an image encoder and a box decoder."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sources.source import DEFAULT_BATCH, Source
from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import ImageSpec
from tk.train.run.checkpoint import image_spec_of
from tk.train.segmenter.model import SIDE, CompactSegmenter, load_segmenter

MAX_BOXES = 64
"""Boxes per decoder call; the runtime takes more in several calls, which bounds memory."""


class _Encoder(nn.Module):
    def __init__(self, network: CompactSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.encode(image)


class _Decoder(nn.Module):
    def __init__(self, network: CompactSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.decode(pixels, boxes)


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Rebuild the network and describe it.

    Raises:
        TkError: the checkpoint is damaged or of another task.
    """
    network, state = load_segmenter(source.path)
    image = image_spec_of(state)
    shape = (3, image.height, image.width)
    canvas = TensorSpec("image", "uint8", ("B", *shape[1:], 3), "RGB canvas")
    pixels = "canvas scaled to about -2..2, padding 0"
    encoder = Part(
        (canvas,),
        (TensorSpec("pixels", "float32", ("B", *shape), pixels),),
        max_batch or DEFAULT_BATCH,
    )
    decoder = Part(
        (
            TensorSpec("pixels", "float32", (1, *shape), "of one picture"),
            TensorSpec("boxes", "float32", ("N", 4), "xyxy, canvas pixels"),
        ),
        (
            TensorSpec("logits", "float32", ("N", SIDE, SIDE), "object above 0, over the frame"),
            TensorSpec("iou", "float32", ("N",), "expected mask quality, 0..1"),
        ),
        MAX_BOXES,
    )

    def feed_encoder(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    @torch.inference_mode()
    def feed_decoder(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        own = network.encode(torch.from_numpy(canvases[:1])).numpy()
        return {"pixels": own, "boxes": spread_boxes(image, batch)}

    return ExportModel(
        task="segmenter",
        parts={
            "encoder": ExportPart(_Encoder(network).eval(), encoder, feed_encoder),
            "decoder": ExportPart(_Decoder(network).eval(), decoder, feed_decoder),
        },
        image=image,
        crop=None,
        classes=(),
        settings={"mask_frame": "box", "frame_margin": network.margin},
        source={"step": state["step"], "best": state.get("best")},
        licence="own weights",
        checkpoint=source.path,
    )


def spread_boxes(image: ImageSpec, count: int) -> NDArray[np.float32]:
    """Boxes of many sizes and places, some over the edge: (count, 4) float32 xyxy, canvas pixels.

    The gate compares two runs of one network, so it needs variety, not objects.
    """
    random = np.random.default_rng(0)
    centres = random.uniform(0, 1, (count, 2))
    sizes = np.exp(random.uniform(np.log(0.03), np.log(0.8), (count, 2)))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return np.asarray(corners * np.tile([image.width, image.height], 2), np.float32)
