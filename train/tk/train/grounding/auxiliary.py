"""A head with fixed classes on the backbone's features, for training only.

From random weights a text-driven detector must learn to see, to read and to match both at once.
This head needs no words: it teaches the backbone directly, as the auxiliary heads of Co-DETR do
(Zong et al., 2023), and is thrown away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tk.train.grounding.dense import Places

SIDE = 0.3
"""Side of a box, as a share of the picture, before anything is learned."""


class Auxiliary(nn.Module):
    """Classes and boxes of places.

    Args:
        width: channels of the features, D.
        classes: number of classes, C.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU())
        self.naming, self.box = nn.Linear(2 * width, classes), nn.Linear(2 * width, 4)
        nn.init.normal_(self.naming.weight, std=0.01)
        nn.init.constant_(self.naming.bias, -math.log(99))
        nn.init.normal_(self.box.weight, std=0.01)
        nn.init.zeros_(self.box.bias)

    def forward(self, features: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Describe what places show.

        Args:
            features: (B, S, D) float32, of all levels before the encoder.
            places: where they lie.

        Returns:
            logits: (B, S, C), and boxes: (B, S, 4) cxcywh before the sigmoid, relative to the
            picture; inf for places outside.
        """
        hidden = self.hidden(features)
        centre = places.centres[None] / places.valid[:, None]
        start = torch.cat([centre, torch.full_like(centre, SIDE)], -1)
        outside = (centre >= 1).any(-1, keepdim=True)
        boxes = self.box(hidden) + torch.special.logit(start, eps=1e-3)
        return self.naming(hidden), boxes.masked_fill(outside, torch.inf)
