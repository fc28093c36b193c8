"""One query for each object: the assignment with the smallest total cost (Hungarian matching)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tk.runtime.assign import best_pairs
from tk.train.detector.loss import giou
from tk.train.grounding.focal import ALPHA, GAMMA


def corners(boxes: Tensor) -> Tensor:
    """Boxes cxcywh -> xyxy, (..., 4)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


@torch.no_grad()
def pair_costs(
    logits: Tensor,
    boxes: Tensor,
    true_boxes: Tensor,
    true_tokens: Tensor,
    weights: tuple[float, float, float],
) -> Tensor:
    """Cost of each query for each object of one picture.

    Args:
        logits: (Q, T), -inf for padding.
        boxes: (Q, 4) cxcywh, relative.
        true_boxes: (N, 4) cxcywh, relative.
        true_tokens: (N, T) bool, tokens that name the object, at least one each.
        weights: of the class, the L1 distance and the generalised IoU.

    Returns:
        (N, Q) float32.
    """
    score = logits.float().sigmoid()
    negative = (1 - ALPHA) * score**GAMMA * -(1 - score + 1e-8).log()
    positive = ALPHA * (1 - score) ** GAMMA * -(score + 1e-8).log()
    share = true_tokens / true_tokens.sum(-1, keepdim=True)
    naming = share @ (positive - negative).T
    distance = torch.cdist(true_boxes, boxes, p=1)
    overlap = giou(corners(true_boxes)[:, None], corners(boxes)[None])
    return weights[0] * naming + weights[1] * distance - weights[2] * overlap


def match(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Pair objects with queries one to one at the smallest total cost.

    Args:
        costs: (N, Q) float32.

    Returns:
        object and query of each of the min(N, Q) pairs, int64.
    """
    table = np.nan_to_num(costs.cpu().double().numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
    if not table.size:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty
    # As gains, all above 0, so that no pair is left out.
    query = best_pairs(table.max() - table + 1)
    objects = np.flatnonzero(query >= 0)
    return torch.from_numpy(objects), torch.from_numpy(query[objects])
