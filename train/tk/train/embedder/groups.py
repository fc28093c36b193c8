"""Optimizer groups of the embedder: layer-wise learning rates of the backbone, head and centres."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from tk.train.embedder.model import EmbedNet
from tk.train.run.task import decay_groups


def parameter_groups(
    model: EmbedNet,
    margin: nn.Module,
    *,
    lr_scale: float,
    weight_decay: float,
    head_decay: float,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """Group the trainable parameters, each of them once.

    Biases, norms and what the backbone names in `no_weight_decay()` (position embeddings, class
    tokens) do not decay.

    Args:
        margin: the class centres; they and the head learn at scale 1.
        lr_scale: learning rate of the backbone's last layer, as a share of the scheduled one.
        weight_decay: of the backbone's matrices and kernels.
        head_decay: of the head and the class centres.
        layer_decay: learning rate of each layer relative to the next; 1: all layers alike.

    Returns:
        groups with `params`, `weight_decay` and `lr_scale`.
    """
    groups = backbone_groups(model.backbone, weight_decay, lr_scale, layer_decay)
    return groups + decay_groups(nn.ModuleList([model.head, margin]), head_decay)


def backbone_groups(
    backbone: Any, weight_decay: float, lr_scale: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Group the parameters of a timm model: layers of equal scale share a group.

    Biases, norms and what the backbone names in `no_weight_decay()` do not decay.

    Args:
        weight_decay: of its matrices and kernels.
        lr_scale: learning rate of the last layer, as a share of the scheduled one.
        layer_decay: learning rate of each layer, as timm counts them, relative to the next.
    """
    plain = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    found = param_groups_layer_decay(
        backbone, weight_decay, no_weight_decay_list=plain, layer_decay=layer_decay
    )
    merged: dict[tuple[float, bool], dict[str, Any]] = {}
    for group in found:
        scale, decays = lr_scale * group["lr_scale"], group["weight_decay"] > 0
        empty = {"params": [], "weight_decay": group["weight_decay"], "lr_scale": scale}
        merged.setdefault((scale, decays), empty)["params"] += group["params"]
    # Decayed parameters first, as in `decay_groups`.
    return [merged[key] for key in sorted(merged, key=lambda key: (key[0], not key[1]))]
