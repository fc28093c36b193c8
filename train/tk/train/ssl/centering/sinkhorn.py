"""Centering by Sinkhorn-Knopp (SwAV, arXiv:2006.09882, section 3.1; DINOv2, arXiv:2304.07193)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tk.train.run.distributed import world
from tk.train.ssl.centering.base import Centering


class SinkhornCentering(Centering):
    """Answers that use all prototypes equally over the batch of all processes.

    The published codes exponentiate logits / temperature and overflow in float32 beyond 88; here
    everything stays logarithms until the end.

    Args:
        iterations: of scaling prototypes, then pictures.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """See `Centering.forward`."""
        scores = logits.float() / temperature
        for _ in range(self.iterations):
            scores = scores - _over_pictures(scores)
            scores = scores.log_softmax(dim=-1)
        return scores.exp()


def _over_pictures(scores: Tensor) -> Tensor:
    """Logarithm of the sum of exp over the rows of all processes: (N, K) -> (1, K)."""
    if world() == 1:
        return scores.logsumexp(dim=0, keepdim=True)
    # A process may have no rows at all (iBOT: no masked patch).
    low = (
        torch.full_like(scores[:1], torch.finfo(scores.dtype).min)
        if len(scores)
        else (torch.full((1, scores.shape[1]), torch.finfo(scores.dtype).min, device=scores.device))
    )
    highest = torch.cat([low, scores]).amax(dim=0, keepdim=True)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    total = (scores - highest).exp().sum(dim=0, keepdim=True)
    dist.all_reduce(total)
    return highest + total.log()
