"""Student or teacher: a backbone and its heads."""

from __future__ import annotations

from torch import Tensor, nn

from tk.train.ssl.backbone.base import Backbone
from tk.train.ssl.config import SslConfig
from tk.train.ssl.heads import ProjectionHead


class Network(nn.Module):
    """A backbone, the head of its class token, and with iBOT that of its patches.

    Attributes:
        patch_head: None when patches share `head` (or are not looked at).
    """

    def __init__(self, backbone: Backbone, config: SslConfig) -> None:
        super().__init__()
        self.backbone = backbone
        sizes = config.answer_sizes()
        separate = len(sizes) > 1 and not config.shared_head
        self.head = _head(backbone.width, sizes[0], config)
        self.patch_head = _head(backbone.width, sizes[-1], config) if separate else None

    def heads(self) -> list[ProjectionHead]:
        """All heads, that of the class token first."""
        return [self.head] if self.patch_head is None else [self.head, self.patch_head]

    def patch_logits(self, patches: Tensor) -> Tensor:
        """(M, D) features of patches -> (M, K) logits."""
        logits: Tensor = (self.patch_head or self.head)(patches)
        return logits


def _head(width: int, out_dim: int, config: SslConfig) -> ProjectionHead:
    return ProjectionHead(
        width,
        out_dim,
        hidden_dim=config.head_hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
        layers=config.head_layers,
        batch_norm=config.head_norm == "batch",
        norm_last_layer=config.norm_last_layer,
    )
