"""Focal loss over the tokens of a prompt (Lin et al., 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, GAMMA = 0.25, 2.0


def token_focal_loss(logits: Tensor, targets: Tensor, tokens: Tensor) -> Tensor:
    """Focal loss of token scores, summed.

    Args:
        logits: (B, Q, T); padding may be -inf.
        targets: (B, Q, T) bool, tokens that name what a query or place shows.
        tokens: (B, T) bool, False for padding.
    """
    real = tokens[:, None].expand_as(logits)
    x, y = logits[real], targets[real].to(logits.dtype)
    score = x.sigmoid()
    right = score * y + (1 - score) * (1 - y)
    weight = (ALPHA * y + (1 - ALPHA) * (1 - y)) * (1 - right) ** GAMMA
    losses: Tensor = weight * F.binary_cross_entropy_with_logits(x, y, reduction="none")
    return torch.sum(losses)
