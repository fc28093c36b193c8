"""No centering: to see that, and how, a training without it collapses."""

from __future__ import annotations

from torch import Tensor

from tk.train.ssl.centering.base import Centering


class NoCentering(Centering):
    """softmax(logits / temperature)."""

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """See `Centering.forward`."""
        return (logits / temperature).softmax(dim=-1)
