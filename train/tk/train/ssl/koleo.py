"""KoLeo: features spread by the distance to the nearest (arXiv:1806.03198, equation 6)."""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as collective
from torch import Tensor
from torch.nn import functional as F

from tk.train.run.distributed import rank, world

EPS = 1e-8
NEAREST = 1e-4
"""Pairs nearer than this push no more: at a duplicate (two equal pictures in a batch) the slope of
the logarithm is 1e8, and that pair would be the whole gradient of the batch."""


def koleo_loss(features: Tensor) -> Tensor:
    """-mean log of the distance of each unit feature to its nearest neighbour.

    Neighbours are looked for in the features of all processes, and gradients reach them there: the
    mean over the processes is the loss, and has the gradient, of one process with all features.

    Args:
        features: (N, D) of different pictures.

    Returns:
        scalar; finite for equal features, 0 when there is nobody to be near to.
    """
    unit = F.normalize(features.float(), dim=-1, eps=EPS)
    everyone = _everyone(unit)
    if len(everyone) < 2:
        return features.sum() * 0.0
    first = rank() * len(unit)
    with torch.no_grad():
        cosines = unit @ everyone.T
        own = torch.arange(len(unit), device=unit.device)
        cosines[own, first + own] = -2.0
        nearest = cosines.argmax(dim=1)
    distances = F.pairwise_distance(unit, everyone[nearest], eps=EPS)
    return -(distances.clamp(min=NEAREST) + EPS).log().mean()


def _everyone(unit: Tensor) -> Tensor:
    """Rows of all processes, with their gradients."""
    if world() == 1:
        return unit
    return torch.cat(list(collective.all_gather(unit)))  # type: ignore[no-untyped-call]
