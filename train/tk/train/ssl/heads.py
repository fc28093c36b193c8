"""The projection head of DINO (arXiv:2104.14294, appendix C): an MLP, unit length, prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

STD = 0.02
"""Deviation of the MLP's weights at the start, as published."""


class ProjectionHead(nn.Module):
    """Features -> logits of K prototypes.

    The last layer is weight-normalised by `parametrizations.weight_norm`, which survives deepcopy
    (the older hook does not); its lengths start at 1.

    Args:
        in_dim: width D of the features.
        out_dim: prototypes K.
        hidden_dim: width of the MLP's hidden layers.
        bottleneck_dim: width before the prototypes.
        layers: linear layers of the MLP, 1 or more.
        batch_norm: after every hidden layer.
        norm_last_layer: the prototypes keep unit length; otherwise their lengths are learned.

    Attributes:
        last_layer: the prototypes.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        width = in_dim
        for _ in range(layers - 1):
            parts.append(nn.Linear(width, hidden_dim, bias=not batch_norm))
            parts += [nn.BatchNorm1d(hidden_dim)] if batch_norm else []
            parts.append(nn.GELU())
            width = hidden_dim
        self.mlp = nn.Sequential(*parts, nn.Linear(width, bottleneck_dim))
        self.mlp.apply(_draw)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        lengths = self.last_layer.get_parameter("parametrizations.weight.original0")
        with torch.no_grad():
            lengths.fill_(1.0)
        lengths.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Tell features by the prototypes.

        Args:
            features: (N, D).

        Returns:
            logits: (N, K) float32, with unit prototypes in -1..1; float32 also under autocast, for
            in bfloat16 a logit near 1 has steps of 0.004, which a teacher's temperature of 0.04
            makes steps of a tenth.
        """
        hidden = self.mlp(features)
        with torch.autocast(hidden.device.type, enabled=False):
            logits: Tensor = self.last_layer(F.normalize(hidden.float(), dim=-1))
        return logits


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
