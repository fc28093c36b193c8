"""ArcFace: the margin is an angle, cos(theta + m) (Deng et al., 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tk.train.embedder.cosine import CosineHead


class ArcFace(CosineHead):
    """Additive angular margin; `margin` is in radians."""

    def harder(self, cos: Tensor) -> Tensor:
        """Turn cos(theta) into cos(theta + m), or cos(theta) - m sin(m) beyond theta = pi - m.

        The second branch is the authors': past pi - m the angle's cosine would rise again, and the
        loss would reward an embedding for moving away.
        """
        square = (1 - cos) * (1 + cos)
        # The slope of sqrt is infinite at 0 and NaN after `where`; so the root never sees a 0.
        inside = square > 0
        sin = torch.where(inside, torch.sqrt(torch.where(inside, square, 1.0)), 0.0)
        shifted = cos * math.cos(self.margin) - sin * math.sin(self.margin)
        limit = -math.cos(self.margin)
        return torch.where(cos > limit, shifted, cos - self.margin * math.sin(self.margin))
