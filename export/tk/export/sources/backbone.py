"""File of `tk train ssl --export-backbone` -> one part: crop in, class token of unit length out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sources.source import DEFAULT_BATCH, Source
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import TkError
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import CropSpec, ImageSpec, spec_from_json
from tk.train.ssl.backbone.base import Backbone
from tk.train.ssl.backbone.export import read_backbone


class ClassToken(nn.Module):
    """uint8 pictures in, class tokens of unit length out.

    Args:
        backbone: in evaluation mode.
        mean, std: of the channels, 0..1, as in the pre-training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.vit = backbone.vit
        self.register_buffer("mean", torch.tensor(mean) * 255)
        self.register_buffer("std", torch.tensor(std) * 255)

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB -> (B, D) float32."""
        scaled = (image.float() - self.mean) / self.std
        token: Tensor = self.vit.forward_features(scaled.permute(0, 3, 1, 2))[:, 0]
        return F.normalize(token, dim=1)


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Rebuild the transformer and describe it as an embedder.

    Raises:
        TkError: the file is damaged, or does not say how pictures become its input.
    """
    backbone, facts = read_backbone(source.path)
    if missing := [key for key in ("mean", "std", "image_spec") if key not in facts]:
        raise TkError(
            f"{source.path} does not say how a picture becomes its input",
            found="no " + ", ".join(missing),
            fix="write it again: tk train ssl --export-backbone",
        )
    image = spec_from_json(ImageSpec, facts["image_spec"])
    shape = ("B", image.height, image.width, 3)
    canvas = TensorSpec("image", "uint8", shape, "RGB crop on the canvas")
    embedding = TensorSpec("embedding", "float32", ("B", backbone.width), "unit length")

    def feed(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    network = ClassToken(backbone, facts["mean"], facts["std"]).eval()
    part = ExportPart(network, Part((canvas,), (embedding,), max_batch or DEFAULT_BATCH), feed)
    return ExportModel(
        task="embedder",
        parts={"model": part},
        image=image,
        crop=CropSpec(),
        classes=(),
        settings={"trained_on": [], "model_id": _name(facts)},
        source={"step": facts.get("step")},
        licence=source.licence or "pre-trained by tk train ssl; of its start and pictures: unknown",
        checkpoint=source.path,
    )


def _name(facts: dict[str, Any]) -> str:
    """timm's name of the transformer, or the own one."""
    return str(facts["backbone"].get("model") or facts["name"])
