"""Cross-entropy of a batch in which only some samples have a label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNLABELLED = -1
"""Label of a sample that has none."""


class LabelLoss(nn.Module):
    """Cross-entropy with the labels there are.

    It is divided by the number of labels that a batch holds *on average*, not by its own: so it
    is the same whether a batch is looked at whole, in parts or in several processes, and a batch
    that happens to hold a single label does not make it count as much as a hundred others.

    Args:
        labels: of all training samples, `UNLABELLED` among them; one labelled at least.
        classes: number C.
        smoothing: share of the target that is spread over all classes, 0..1.
        balance: weigh each class with the inverse of how often it occurs; mean weight 1.
    """

    weight: Tensor

    def __init__(
        self, labels: Sequence[int], classes: int, *, smoothing: float = 0.0, balance: bool = False
    ) -> None:
        super().__init__()
        known = torch.tensor([label for label in labels if label != UNLABELLED])
        self.share = len(known) / len(labels)
        self.smoothing = smoothing
        counts = torch.bincount(known, minlength=classes).clamp(min=1)
        weight = len(known) / (classes * counts) if balance else torch.ones(classes)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            logits: (B, C) float32.
            labels: (B,) int64, `UNLABELLED` where there is none.

        Returns:
            () float32; 0, with a gradient of 0, if the batch holds no label.
        """
        known = labels != UNLABELLED
        target = labels.clamp(min=0)
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)
        weights = self.weight[target] * known
        return (losses * weights).sum() / (len(labels) * self.share)
