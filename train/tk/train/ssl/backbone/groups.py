"""Optimizer groups of a student: layers of the backbone, heads, their last layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from tk.train.ssl.backbone.base import Backbone
from tk.train.ssl.heads import ProjectionHead


def parameter_groups(
    backbone: Backbone,
    heads: Sequence[ProjectionHead],
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Group what is trained, each parameter once.

    Biases, norms, tokens and position embeddings do not decay.

    Args:
        layer_decay: learning rate of each block relative to the next; 1: all alike.

    Returns:
        groups with `params`, `weight_decay`, `lr_scale` and `last_layer` (a head's prototypes).
    """
    vit = backbone.vit
    plain = set(vit.no_weight_decay()) | {"reg_token", "pos_embed", "cls_token"}
    found = param_groups_layer_decay(
        vit, weight_decay, no_weight_decay_list=tuple(plain), layer_decay=layer_decay
    )
    rows = [(p, g["weight_decay"], g["lr_scale"], False) for g in found for p in g["params"]]
    if backbone.mask_token.requires_grad:
        rows.append((backbone.mask_token, 0.0, 1.0, False))
    for head in heads:
        for part, last in ((head.mlp, False), (head.last_layer, True)):
            rows += [(p, weight_decay if p.ndim > 1 else 0.0, 1.0, last) for p in _trained(part)]
    merged: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for parameter, decay, scale, last in rows:
        merged.setdefault((decay, scale, last), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale, "last_layer": last}
        for (decay, scale, last), params in merged.items()
    ]


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
