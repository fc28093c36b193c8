"""What the margin losses share: class centres on the unit sphere and cosine logits in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NO_DIRECTION = 1e-6
"""Length under which a vector counts as zero: dividing by it would only blow up its gradient."""


def unit(vectors: Tensor) -> Tensor:
    """Scale rows to length 1; rows of (almost) length 0 stay as they are.

    Args:
        vectors: (N, D) float32.

    Returns:
        (N, D) float32. The gradient of a zero row is that of the identity, so one dead embedding
        cannot drown the rest of the batch (torch's own `normalize` gives it a factor of 1e12).
    """
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(length < NO_DIRECTION, 1.0, length)


class CosineHead(nn.Module):
    """Class centres on the unit sphere; a subclass says how the true class's cosine is made harder.

    The arithmetic runs in float32 whatever the autocast: in bfloat16 a cosine near 1 has steps of
    0.004, which is more than most margins move it.

    With several centres per class (sub-centre ArcFace, Deng et al., 2020) a crop has to be near one
    of them only. Clean crops share one centre and mislabelled ones gather at another, where they do
    little harm and can be found (`tk.train.embedder.outliers`).

    Args:
        dim: length D of the embeddings.
        classes: C, the number of classes.
        scale: `s`, what cosines are multiplied by before the softmax.
        margin: `m`, in the unit of the subclass.
        sub_centers: K, centres per class.

    Attributes:
        weight: (C * K, D) float32; the centres of class c are the rows c * K to c * K + K - 1.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        scale: float = 30.0,
        margin: float = 0.30,
        sub_centers: int = 1,
    ) -> None:
        super().__init__()
        self.scale, self.margin, self.sub_centers = scale, margin, sub_centers
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes * sub_centers, dim)))

    def harder(self, cos: Tensor) -> Tensor:
        """Lower the cosines `cos` (any shape, float32) by the margin."""
        raise NotImplementedError

    def sub_cosines(self, embedding: Tensor) -> Tensor:
        """Cosine of every embedding with every centre of every class.

        Args:
            embedding: (B, D) of any length and float dtype.

        Returns:
            (B, C, K) float32, -1..1.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            cos = unit(embedding.float()) @ unit(self.weight.float()).T
            classes = len(self.weight) // self.sub_centers
            return cos.clamp(-1, 1).view(len(cos), classes, self.sub_centers)

    def cosines(self, embedding: Tensor) -> Tensor:
        """Cosine of every embedding with the nearest centre of every class.

        Args:
            embedding: (B, D) of any length and float dtype.

        Returns:
            (B, C) float32, -1..1.
        """
        cos = self.sub_cosines(embedding)
        return cos.squeeze(2) if self.sub_centers == 1 else cos.max(dim=2).values

    def centres(self) -> Tensor:
        """Class centres without their gradient: (C, K, D) float32, unit length."""
        centres = unit(self.weight.detach().float())
        return centres.view(-1, self.sub_centers, centres.shape[1])

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
        cos, true = self.cosines(embedding), labels[:, None]
        with torch.autocast(embedding.device.type, enabled=False):
            return cos.scatter(1, true, self.harder(cos.gather(1, true))) * self.scale
