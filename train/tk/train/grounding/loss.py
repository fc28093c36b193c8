"""The published loss of GroundingDINO: queries against objects, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tk.train.detector.loss import giou
from tk.train.grounding.dense import Places, assign_places
from tk.train.grounding.focal import token_focal_loss
from tk.train.grounding.matching import corners, match, pair_costs
from tk.train.grounding.network import Outputs

NAMING = 2.0
"""Weight of the class in the loss; the library writes it in its code, not in the configuration."""
COMPANY = 0.5
"""Generalised IoU from which on a query lies on an object."""


@dataclass(frozen=True)
class Truth:
    """Objects of a batch, picture after picture, N in all.

    Attributes:
        boxes: (N, 4) float32 cxcywh, relative to the picture without padding.
        named: (N, T) bool, tokens that name the object; at least one each.
        counts: objects of each picture.
        tokens: (B, T) bool, False for padding.
    """

    boxes: Tensor
    named: Tensor
    counts: Sequence[int]
    tokens: Tensor

    def pictures(self) -> Tensor:
        """(N,) int64, the picture of each object."""
        counts = torch.tensor(list(self.counts), device=self.boxes.device)
        return torch.arange(len(counts), device=self.boxes.device).repeat_interleave(counts)


@dataclass(frozen=True)
class Weights:
    """Of costs (matching) and losses, as in the library's configuration.

    Attributes:
        costs: of class, distance and overlap in the matching.
        distance, overlap: of the loss of boxes.
        contrast: of `contrast_loss`, which the library does not have; 0: none.
        many: let all queries that lie on an object show it, not the matched one alone.
    """

    costs: tuple[float, float, float] = (1.0, 5.0, 2.0)
    distance: float = 5.0
    overlap: float = 2.0
    contrast: float = 0.0
    many: bool = False


def weights_of(config: Any, dense: float = 0.0) -> Weights:
    """Weights that a configuration of the library asks for, and the option `dense_weight`."""
    costs = (float(config.class_cost), float(config.bbox_cost), float(config.giou_cost))
    distance, overlap = config.bbox_loss_coefficient, config.giou_loss_coefficient
    return Weights(costs, float(distance), float(overlap), dense, dense > 0)


def pair(logits: Tensor, boxes: Tensor, truth: Truth, weights: Weights) -> tuple[Tensor, Tensor]:
    """Match the queries of each picture with its objects.

    Args:
        logits: (B, Q, T), boxes: (B, Q, 4) cxcywh, relative.

    Returns:
        place of the query in B * Q and of the object in N of each pair, int64.
    """
    queries, objects, start = [], [], 0
    for picture, count in enumerate(truth.counts):
        own = slice(start, start + count)
        costs = pair_costs(
            logits[picture], boxes[picture], truth.boxes[own], truth.named[own], weights.costs
        )
        thing, query = match(costs)
        objects.append(thing + start)
        queries.append(query + picture * logits.shape[1])
        start += count
    device = logits.device
    return torch.cat(queries).to(device), torch.cat(objects).to(device)


def paired_loss(
    logits: Tensor,
    boxes: Tensor,
    pairs: tuple[Tensor, Tensor],
    truth: Truth,
    weights: Weights,
    count: float,
) -> dict[str, Tensor]:
    """Loss of queries some of which are paired with objects; the others show nothing.

    Args:
        logits: (B, Q, T), boxes: (B, Q, 4) cxcywh, relative.
        pairs: see `pair`.
        count: what the sums are divided by.
    """
    queries, objects = pairs
    targets = torch.zeros_like(logits, dtype=torch.bool)
    targets.flatten(0, 1)[queries] = truth.named[objects]
    found, true = boxes.flatten(0, 1)[queries], truth.boxes[objects]
    extra = {}
    if weights.contrast:
        sure = contrast_loss(logits.flatten(0, 1)[queries], truth.named[objects])
        extra = {"contrast": weights.contrast * sure / count}
    return {
        **extra,
        "class": NAMING * token_focal_loss(logits, targets, truth.tokens) / count,
        "box": weights.distance * F.l1_loss(found, true, reduction="sum") / count,
        "giou": weights.overlap * (1 - giou(corners(found), corners(true))).sum() / count,
    }


def contrast_loss(logits: Tensor, named: Tensor) -> Tensor:
    """Cross-entropy between the right words and all others, summed over paired queries.

    Focal loss hardly pushes a wrong word down that scores 0.1, so words stay mixed up for long.

    Args:
        logits: (P, T), -inf for padding, named: (P, T) bool, at least one each.
    """
    right = logits.masked_fill(~named, -torch.inf).logsumexp(-1)
    return (logits.logsumexp(-1) - right).sum()


def set_loss(logits: Tensor, boxes: Tensor, truth: Truth, weights: Weights) -> dict[str, Tensor]:
    """Loss of one set of queries, matched one to one unless `weights.many`; see `paired_loss`."""
    pairs = pair(logits, boxes, truth, weights)
    count = sum(truth.counts)
    if weights.many:
        pairs = with_company(pairs, boxes.detach(), truth)
        count = len(pairs[0])
    return paired_loss(logits, boxes, pairs, truth, weights, max(count, 1))


def with_company(
    pairs: tuple[Tensor, Tensor], boxes: Tensor, truth: Truth
) -> tuple[Tensor, Tensor]:
    """Add the queries that lie on an object as well as a matched one does.

    Only one of many queries on an object is matched, now this, now that: from random weights it
    takes long until they agree which, and till then all score low. The runtime suppresses boxes
    that overlap anyway.

    Args:
        pairs: as `pair` makes them.
        boxes: (B, Q, 4) cxcywh, relative.
    """
    queries = boxes.shape[1]
    owner = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(queries)
    overlap = giou(corners(boxes).flatten(0, 1)[:, None], corners(truth.boxes)[None])
    overlap = overlap.masked_fill(owner[:, None] != truth.pictures()[None], -1.0)
    overlap[pairs[0]] = -1.0
    if not overlap.shape[1]:
        return pairs
    best, thing = overlap.max(1)
    more = (best >= COMPANY).nonzero()[:, 0]
    return torch.cat([pairs[0], more]), torch.cat([pairs[1], thing[more]])


def best_places(outputs: Outputs, queries: int) -> tuple[Tensor, Tensor]:
    """Logits and boxes of the places that the decoder starts from: (B, Q, T) and (B, Q, 4)."""
    logits, boxes = outputs.place_logits, outputs.place_boxes
    chosen = logits.detach().amax(-1).topk(queries, dim=1)[1][..., None]
    return (
        logits.gather(1, chosen.expand(-1, -1, logits.shape[2])),
        boxes.gather(1, chosen.expand(-1, -1, 4)).sigmoid(),
    )


def grounding_loss(
    outputs: Outputs, truth: Truth, weights: Weights, places: Places, dense: float
) -> dict[str, Tensor]:
    """Loss of a batch.

    Args:
        outputs, truth, weights: of the batch.
        places: of the encoder.
        dense: weight of the one-to-many loss on the encoder's places. With it, that loss takes the
            place of the set loss of the encoder: they would pull the same scores apart, one wants
            a single place per object, the other all that fit.
    """
    values: dict[str, Tensor] = {}
    for layer in range(len(outputs.logits)):
        found = set_loss(outputs.logits[layer], outputs.boxes[layer], truth, weights)
        values = {name: values.get(name, 0) + value for name, value in found.items()}
    if dense:
        found = dense_loss(outputs.place_logits, outputs.place_boxes, truth, weights, places)
        encoder = sum(found.values(), torch.zeros_like(values["class"]))
        total = dense * encoder
    else:
        queries = outputs.logits.shape[2]
        found = set_loss(*best_places(outputs, queries), truth, weights)
        encoder = total = sum(found.values(), torch.zeros_like(values["class"]))
    return {"loss": sum(values.values(), total), **values, "encoder": encoder}


def dense_loss(
    logits: Tensor, boxes: Tensor, truth: Truth, weights: Weights, places: Places
) -> dict[str, Tensor]:
    """One-to-many loss on places, as auxiliary heads of Co-DETR have it.

    Zong et al., "DETRs with Collaborative Hybrid Assignments Training", 2023.

    Args:
        logits: (B, S, T) of tokens, or of classes if `truth.named` tells classes.
        boxes: (B, S, 4) cxcywh before the sigmoid; inf for places that cannot show anything.
    """
    usable = boxes.isfinite().all(-1)
    pairs = assign_places(places, usable, truth.boxes, truth.pictures())
    # Boxes at the edge are inf, and 0 * inf has no gradient.
    safe = torch.where(usable[..., None], boxes, 0.0).sigmoid()
    return paired_loss(logits, safe, pairs, truth, weights, max(len(pairs[0]), 1))
