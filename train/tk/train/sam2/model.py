"""SAM-2 as training uses it: opened from anywhere, asked with boxes, written as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2Model

from tk.runtime.files import atomic_folder
from tk.train.sam2.loss import Predictions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalisation:
    """Mean and spread of the channels, on the scale 0..1."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def pixels(self, canvas: Tensor) -> Tensor:
        """Network input (B, 3, H, W) float32 of canvases (B, H, W, 3) uint8 RGB."""
        mean = torch.tensor(self.mean, device=canvas.device) * 255
        scale = 1 / (torch.tensor(self.std, device=canvas.device) * 255)
        return ((canvas.float() - mean) * scale).permute(0, 3, 1, 2)


def side_of(model: Sam2Model) -> int:
    """Side of the model's canvas, pixels."""
    config: Any = model.config
    return int(config.prompt_encoder_config.image_size)


def freeze(model: Sam2Model, *, encoder: bool) -> None:
    """Leave out of the training what boxes never reach, and the image encoder if asked to."""
    parts: list[nn.Module] = [model.prompt_encoder.mask_embed]
    if encoder:
        parts.append(model.vision_encoder)
    for part in parts:
        part.requires_grad_(False)


def predict(
    model: Sam2Model, pixels: Tensor | None, boxes: Tensor, maps: list[Tensor] | None = None
) -> Predictions:
    """Masks of the boxes of pictures; each picture is encoded once.

    Args:
        pixels: (B, 3, S, S) float32, normalised; None when there are `maps`.
        boxes: (B, K, 4) float32 xyxy, canvas pixels.
        maps: of the pictures, from `get_image_embeddings`.

    Returns:
        of the B * K boxes, picture by picture; logits are (B * K, 3, S / 4, S / 4).
    """
    found: Any = model(
        pixel_values=pixels, image_embeddings=maps, input_boxes=boxes, multimask_output=True
    )
    return Predictions(
        found.pred_masks.flatten(0, 1).float(),
        found.iou_scores.flatten(0, 1).float(),
        found.object_score_logits.flatten(0, 1).float(),
    )


def best_masks(found: Predictions) -> tuple[Tensor, Tensor]:
    """Choose as the exported decoder does: logits (N, h, w) and predicted IoU (N,)."""
    iou, index = found.iou.max(dim=1)
    return found.logits[torch.arange(len(index), device=index.device), index], iou


def write_model(
    model: Sam2Model, normalisation: Normalisation, folder: Path, *, half: bool
) -> None:
    """Write a folder of the library's layout, whole or not at all; replaces what is there.

    Args:
        half: write the weights in float16. The model is changed to it.
    """
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    side = side_of(model)
    processor: Any = Sam2ImageProcessor(
        size={"height": side, "width": side},
        mask_size={"height": side // 4, "width": side // 4},
        image_mean=list(normalisation.mean),
        image_std=list(normalisation.std),
    )
    whole: Any = model  # its methods carry no types
    weights = whole.half() if half else whole
    with atomic_folder(folder, overwrite=True, own="config.json") as temporary:
        weights.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)  # the library makes the weights private
