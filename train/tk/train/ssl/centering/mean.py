"""Centering by a moving average of the logits (DINO, arXiv:2104.14294, equation 4)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tk.train.run.distributed import world
from tk.train.ssl.centering.base import Centering


class MeanCentering(Centering):
    """softmax((logits - centre) / temperature); centre = m centre + (1 - m) mean of the logits.

    Args:
        dim: prototypes K.
        momentum: m.
    """

    center: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, dim))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """See `Centering.forward`."""
        return ((logits - self.center) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move the centre by the mean over the logits of all processes, however many each has."""
        total = logits.sum(dim=0, keepdim=True)
        count = torch.tensor([float(len(logits))], device=logits.device)
        if world() > 1:
            dist.all_reduce(total)
            dist.all_reduce(count)
        if count.item():
            self.center.lerp_(total / count, 1.0 - self.momentum)
