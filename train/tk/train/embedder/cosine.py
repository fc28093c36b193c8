"""What the margin losses share: one weight vector per class and cosine logits in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CosineHead(nn.Module):
    """Class centres on the unit sphere; a subclass says how the true class's cosine is made harder.

    The arithmetic runs in float32 whatever the autocast: in bfloat16 a cosine near 1 has steps of
    0.004, which is more than most margins move it.

    Args:
        dim: length D of the embeddings.
        classes: C, the number of classes.
        scale: `s`, what cosines are multiplied by before the softmax.
        margin: `m`, in the unit of the subclass.
    """

    def __init__(
        self, dim: int, classes: int, *, scale: float = 30.0, margin: float = 0.30
    ) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes, dim)))

    def harder(self, cos: Tensor) -> Tensor:
        """Lower `cos: (B, C) float32` by the margin."""
        raise NotImplementedError

    def cosines(self, embedding: Tensor) -> Tensor:
        """Cosine of every embedding with every class centre.

        Args:
            embedding: (B, D) of any length and float dtype.

        Returns:
            (B, C) float32, -1..1.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            cos = F.normalize(embedding.float()) @ F.normalize(self.weight.float()).T
            return cos.clamp(-1, 1)

    def logits(self, embedding: Tensor) -> Tensor:
        """Logits without a margin, for evaluation: (B, D) -> (B, C) float32."""
        return self.cosines(embedding) * self.scale

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Logits for the training loss, with the margin on the true class.

        Args:
            embedding: (B, D) of any float dtype.
            labels: (B,) int64, 0..C-1.

        Returns:
            (B, C) float32; feed them to a cross-entropy.
        """
        cos = self.cosines(embedding)
        with torch.autocast(embedding.device.type, enabled=False):
            true = F.one_hot(labels, cos.shape[1]).bool()
            return torch.where(true, self.harder(cos), cos) * self.scale
