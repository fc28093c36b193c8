"""Loss of the segmenter: cross-entropy and Dice on the mask, regression of its IoU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of each mask.

    Args:
        logits: (N, h, w) float32.
        target: (N, h, w) float32 0..1.

    Returns:
        (N,) float32.
    """
    score = logits.sigmoid().flatten(1)
    target = target.flatten(1)
    shared = (score * target).sum(dim=1)
    return 1 - (2 * shared + 1) / (score.sum(dim=1) + target.sum(dim=1) + 1)


def mask_overlap(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of each mask `logits > 0` with `target > 0.5`, `(N,) float32`; two empty ones agree."""
    found, true = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    shared = (found & true).sum(dim=1).float()
    union = (found | true).sum(dim=1).float()
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def segmenter_loss(logits: Tensor, quality: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Loss of a batch of masks.

    Args:
        logits: (N, h, w) float32.
        quality: (N,) float32, logit of the IoU.
        target: (N, h, w) float32 0..1.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    dice = dice_loss(logits, target).mean()
    overlap = mask_overlap(logits.detach(), target)
    iou = F.mse_loss(quality.sigmoid(), overlap)
    return {"loss": entropy + dice + iou, "entropy": entropy, "dice": dice, "iou": iou}
