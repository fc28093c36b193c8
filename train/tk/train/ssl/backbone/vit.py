"""The own-named transformer: any width and depth, with the classes of timm."""

from __future__ import annotations

import timm
from torch import nn

from tk.train.ssl.backbone.base import Backbone

NAME = "slt_vitsmall_patch16"
"""Its name in `--export-backbone` files, whatever its shape: their metadata say that."""

BASE = "vit_small_patch16_224.dino"
"""timm's name for the usual shape; other shapes differ from it by what timm lets one say."""


def make_vit(
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
) -> Backbone:
    """Build a transformer without weights of anybody; any multiple of the patch size can go in."""
    return Backbone(
        timm.create_model(
            BASE,
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            num_classes=0,
            dynamic_img_size=True,
        )
    )


def spread_weights(backbone: nn.Module) -> None:
    """Draw the matrices anew so that every layer keeps the spread of its input (Glorot, 2010).

    The fixed deviation of 0.02 that vision transformers usually start from suits a width of 384
    and more; a narrow network starts almost blind with it: its answers differ so little between
    pictures that the loss stays at ln K for many epochs.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
