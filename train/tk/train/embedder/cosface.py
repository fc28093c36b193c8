"""CosFace: the margin is taken off the cosine itself, cos(theta) - m (Wang et al., 2018)."""

from __future__ import annotations

from torch import Tensor

from tk.train.embedder.cosine import CosineHead


class CosFace(CosineHead):
    """Additive cosine margin."""

    def harder(self, cos: Tensor) -> Tensor:
        """Turn cos(theta) into cos(theta) - m."""
        return cos - self.margin
