"""What keeps the teacher from one answer for all pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Centering(nn.Module, ABC):
    """Logits of the teacher -> its answers; state, if any, is in buffers."""

    @abstractmethod
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Turn logits into answers.

        Args:
            logits: (N, K) float32 of this process.
            temperature: above 0.

        Returns:
            (N, K) probabilities.
        """

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Take in the logits of an optimizer step: (N, K); all processes call it."""
