"""The forward pass that losses need: all decoder layers and all places of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What the network says; T tokens, L decoder layers, Q queries, S places of the encoder.

    Attributes:
        logits: (L, B, Q, T); padding is -inf.
        boxes: (L, B, Q, 4) cxcywh, relative to the picture without padding.
        place_logits: (B, S, T).
        place_boxes: (B, S, 4) cxcywh before the sigmoid; inf where the library proposes nothing.
        features: (B, S, D), of the picture before the encoder.
    """

    logits: Tensor
    boxes: Tensor
    place_logits: Tensor
    place_boxes: Tensor
    features: Tensor


def normalise(
    image: Tensor, valid_hw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Make the library's input: padding is zeroed after normalising, as the library pads.

    Args:
        image: (B, H, W, 3) uint8 RGB, pictures at the top left corner of the canvas.
        valid_hw: (B, 2) int, rows and columns that are picture.
        mean, std: per channel, for values 0..1.

    Returns:
        pixels: (B, 3, H, W) float32, and mask: (B, H, W) int64, 1 for picture.
    """
    # The very operations of the export, so that pixels agree to the last bit.
    low = 255 * torch.tensor(mean, device=image.device)
    scale = 1 / (255 * torch.tensor(std, device=image.device))
    rows = torch.arange(image.shape[1], device=image.device) < valid_hw[:, :1]
    columns = torch.arange(image.shape[2], device=image.device) < valid_hw[:, 1:]
    inside = rows[:, :, None] & columns[:, None]
    pixels = torch.where(inside[..., None], (image.float() - low) * scale, 0.0)
    return pixels.permute(0, 3, 1, 2), inside.long()


def forward(network: Any, pixels: Tensor, mask: Tensor, ids: Tensor, tokens: Tensor) -> Outputs:
    """Run the library's model and its heads on every decoder layer.

    Args:
        network: the library's `…ForObjectDetection`.
        pixels, mask: as `normalise` makes them.
        ids: (B, T) int64 token ids, padded with 0.
        tokens: (B, T) bool, False for padding.
    """
    features: list[Tensor] = []
    hook = network.model.encoder.register_forward_pre_hook(
        lambda module, given, named: features.append(named["vision_features"]), with_kwargs=True
    )
    try:
        found = network.model(
            pixel_values=pixels,
            pixel_mask=mask,
            input_ids=ids,
            attention_mask=tokens.long(),
            return_dict=True,
        )
    finally:
        hook.remove()
    text, states = found.encoder_last_hidden_state_text, found.intermediate_hidden_states
    count = ids.shape[1]
    logits, boxes = [], []
    reference = found.init_reference_points
    for layer in range(states.shape[1]):
        own = states[:, layer]
        scores = network.class_embed[layer](
            vision_hidden_state=own, text_hidden_state=text, text_token_mask=tokens
        )
        logits.append(scores[..., :count])
        start = torch.special.logit(reference, eps=1e-5)
        boxes.append((network.bbox_embed[layer](own) + start).sigmoid())
        reference = found.intermediate_reference_points[:, layer]
    return Outputs(
        torch.stack(logits).float(),
        torch.stack(boxes).float(),
        found.enc_outputs_class[..., :count].float(),
        found.enc_outputs_coord_logits.float(),
        features[0].float(),
    )


@torch.no_grad()
def level_shapes(network: Any, height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of each feature level on a canvas of `height` x `width` pixels."""
    core = network.model
    device = next(core.parameters()).device
    training = core.training
    maps = core.eval().backbone.conv_encoder.model(torch.zeros(1, 3, height, width, device=device))
    found = list(maps.feature_maps)
    shapes = [tuple(level.shape[2:]) for level in found]
    last = found[-1]
    for project in core.input_proj_vision[len(found) :]:
        last = project(last)
        shapes.append(tuple(last.shape[2:]))
    core.train(training)
    return [(int(rows), int(columns)) for rows, columns in shapes]
