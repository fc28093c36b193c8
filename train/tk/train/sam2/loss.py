"""Loss of SAM-2's masks as its authors train them: focal, Dice, predicted IoU, object score.

A box gets several masks. The one that fits best learns, so that the others may mean other things;
the predicted IoU of every mask learns, because it decides which mask is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tk.runtime.heads.segmenter import REGION_MARGIN


@dataclass(frozen=True)
class Weights:
    """Of the terms; the defaults are those of SAM-2.

    Attributes:
        alpha: of object pixels in the focal loss, 0..1; the others weigh 1 - alpha.
        gamma: how little easy pixels count in the focal loss, 0 or more; 0: all alike.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    score: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class Predictions:
    """What the decoder says of N boxes, M masks each.

    Attributes:
        logits: (N, M, h, w) float32, object above 0.
        iou: (N, M) float32 0..1, predicted.
        score: (N, 1) float32, logit of "there is an object".
    """

    logits: Tensor
    iou: Tensor
    score: Tensor

    def enlarged(self, side: int) -> Predictions:
        """The same with logits of `side` x `side` pixels."""
        logits = F.interpolate(self.logits, (side, side), mode="bilinear", align_corners=False)
        return replace(self, logits=logits)


def focal_loss(
    logits: Tensor, target: Tensor, weights: Weights, region: Tensor | None = None
) -> Tensor:
    """Focal loss of each mask, mean over its pixels (Lin et al. 2017).

    Args:
        logits: (N, M, h, w) float32.
        target: (N, 1, h, w) float32 0..1, share of the pixel that the object covers.
        weights: alpha and gamma of them.
        region: (N, 1, h, w) float32 0 or 1, pixels that count; None: all.

    Returns:
        (N, M) float32.
    """
    target = target.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    share = logits.sigmoid()
    right = share * target + (1 - share) * (1 - target)
    balance = weights.alpha * target + (1 - weights.alpha) * (1 - target)
    losses = (balance * (1 - right) ** weights.gamma * entropy).flatten(2)
    if region is None:
        return losses.mean(dim=2)
    counted = region.flatten(2)
    return (losses * counted).sum(dim=2) / counted.sum(dim=2).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """1 - Dice of each mask, `(N, M) float32`; arguments as of `focal_loss`."""
    share = logits.sigmoid()
    if region is not None:
        share, target = share * region, target * region
    share, target = share.flatten(2), target.flatten(2)
    shared = (share * target).sum(dim=2)
    return 1 - (2 * shared + 1) / (share.sum(dim=2) + target.sum(dim=2) + 1)


def measured_iou(logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """IoU of `logits > 0` with pixels covered by half or more, `(N, M) float32`; empty ones: 0."""
    found, true = logits > 0, target >= 0.5
    if region is not None:
        found, true = found & (region > 0), true & (region > 0)
    found, true = found.flatten(2), true.flatten(2)
    shared = (found & true).sum(dim=2).float()
    return shared / (found | true).sum(dim=2).float().clamp(min=1)


def filled_boxes(boxes: Tensor, canvas: int, cells: int) -> Tensor:
    """Masks of everything that lies in a box.

    Args:
        boxes: (N, 4) float32 xyxy, canvas pixels.
        canvas: its side, pixels.
        cells: side of a mask.

    Returns:
        (N, cells, cells) float32 0..1, share of each cell that the box covers.
    """
    edges = boxes * (cells / canvas)
    start = torch.arange(cells, device=boxes.device, dtype=boxes.dtype)

    def covered(low: Tensor, high: Tensor) -> Tensor:
        shared = torch.minimum(start + 1, high[:, None]) - torch.maximum(start, low[:, None])
        return shared.clamp(0, 1)

    across, down = covered(edges[:, 0], edges[:, 2]), covered(edges[:, 1], edges[:, 3])
    return down[:, :, None] * across[:, None, :]


def drawn_regions(boxes: Tensor, canvas: int, cells: int) -> Tensor:
    """Where the runtime draws a mask: the box, its margin, and every cell that they touch.

    Arguments and result as `filled_boxes`, 0 or 1.
    """
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
    margin = REGION_MARGIN * longer
    grown = torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)
    return (filled_boxes(grown, canvas, cells) > 0).float()


def sam2_loss(
    found: Predictions,
    target: Tensor,
    weights: Weights,
    spread: float = 0.0,
    region: Tensor | None = None,
    elsewhere: bool = False,
    filled: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss of a batch of boxes, each weighing the same.

    Args:
        found: of N boxes.
        target: (N, h, w) float32 0..1; a box whose mask is zero everywhere has no object, and only
            its score learns.
        weights: of the terms.
        spread: 0: the best mask of a box learns alone; 1: all do alike.
        region: (N, h, w) float32 0 or 1, pixels that count; None: all.
        elsewhere: half of the loss of a mask counts all pixels all the same.
        filled: (N, h, w) float32 0..1, everything in the box: what the last mask of a box learns
            instead of the object, on all pixels; None: it learns the object too.

    Returns:
        `loss` and its terms before weighting, and `overlap`, the IoU of the masks that a user
        would get (those of the highest predicted IoU).
    """
    target = target[:, None]
    region = None if region is None else region[:, None]
    focal = focal_loss(found.logits, target, weights, region)
    dice = dice_loss(found.logits, target, region)
    if elsewhere:
        focal = (focal + focal_loss(found.logits, target, weights)) / 2
        dice = (dice + dice_loss(found.logits, target)) / 2
    if filled is not None:
        inside, last = filled[:, None], found.logits[:, -1:]
        focal = torch.cat([focal[:, :-1], focal_loss(last, inside, weights)], dim=1)
        dice = torch.cat([dice[:, :-1], dice_loss(last, inside)], dim=1)
    overlap = measured_iou(found.logits.detach(), target, region)
    errors = (found.iou - overlap).abs().mean(dim=1)
    best = (weights.focal * focal + weights.dice * dice).argmin(dim=1, keepdim=True)

    def of_masks(losses: Tensor) -> Tensor:
        return (1 - spread) * losses.gather(1, best)[:, 0] + spread * losses.mean(dim=1)

    present = (target > 0).flatten(1).any(dim=1).float()
    terms = {
        "focal": (of_masks(focal) * present).mean(),
        "dice": (of_masks(dice) * present).mean(),
        "iou": (errors * present).mean(),
        "score": F.binary_cross_entropy_with_logits(found.score[:, 0], present),
    }
    total = sum(getattr(weights, name) * value for name, value in terms.items())
    chosen = overlap.gather(1, found.iou.argmax(dim=1, keepdim=True))
    return {"loss": torch.as_tensor(total), **terms, "overlap": chosen.mean()}
