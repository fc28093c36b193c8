"""Loss of the detector: focal loss on the heat map, generalised IoU on the boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BOX_WEIGHT = 5.0


def focal_loss(heat: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss of CenterNet (Zhou et al., 2019), summed.

    Args:
        heat: (B, C, h, w) float32 logits.
        target: (B, C, h, w) float32 0..1; 1 marks a centre, less the cells around it.
    """
    score = heat.sigmoid()
    centre = target == 1
    positive = (1 - score) ** 2 * F.logsigmoid(heat)
    negative = (1 - target) ** 4 * score**2 * F.logsigmoid(-heat)
    return -torch.where(centre, positive, negative).sum()


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes `(..., 4) xyxy`, pairwise; -1..1."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    union = area_a + area_b - shared
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(dim=-1)
    return shared / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def detector_loss(
    heat: Tensor, boxes: Tensor, targets: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Tensor]:
    """Loss of a batch, per object.

    Args:
        heat: (B, C, h, w) float32 logits.
        boxes: (B, 4, h, w) float32 xyxy, canvas pixels.
        targets: heat, box and weight maps as `make_targets` paints them, stacked.
    """
    target_heat, target_boxes, weight = targets
    count = (target_heat == 1).sum().clamp(min=1)
    heat_loss = focal_loss(heat, target_heat) / count
    chosen = weight > 0
    predicted, true = boxes.permute(0, 2, 3, 1)[chosen], target_boxes.permute(0, 2, 3, 1)[chosen]
    box_loss = ((1 - giou(predicted, true)) * weight[chosen]).sum() / weight.sum().clamp(min=1e-6)
    return {"loss": heat_loss + BOX_WEIGHT * box_loss, "heat": heat_loss, "box": box_loss}
