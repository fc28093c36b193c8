"""Where a run starts: the student from nothing, from timm, or from a file."""

from __future__ import annotations

from typing import Any

from tk.train.pretrained.backbone_weights import load_backbone
from tk.train.ssl.backbone.base import Backbone, freeze_blocks
from tk.train.ssl.backbone.finite import check_finite
from tk.train.ssl.backbone.timm import make_timm
from tk.train.ssl.backbone.vit import make_vit, spread_weights
from tk.train.ssl.config import SslConfig
from tk.train.ssl.network import Network


def make_student(config: SslConfig) -> Network:
    """Build the student as the options say.

    Raises:
        TkError: no such model, weights that cannot be had or do not fit or are not finite, more
            frozen blocks than there are.
    """
    backbone = _backbone(config)
    # A resumed run has its weights in the checkpoint: the file may be gone.
    if config.weights and not config.resume:
        load_backbone(backbone.vit, config.weights)
        check_finite(backbone, config.weights)
    freeze_blocks(backbone, config.freeze_blocks)
    # What is never used must not wait for gradients of several processes.
    backbone.mask_token.requires_grad_(config.algorithm == "ibot")
    return Network(backbone, config)


def shape_of(config: SslConfig) -> dict[str, Any]:
    """What it takes to build the backbone again; see `backbone.export.build`."""
    if config.model:
        return {"model": config.model, "image_size": config.image_size}
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.vit_embed_dim,
        "depth": config.vit_depth,
        "num_heads": config.heads(),
        "mlp_ratio": config.vit_mlp_ratio,
    }


def _backbone(config: SslConfig) -> Backbone:
    if config.model:
        pretrained = config.pretrained and not config.resume
        return make_timm(
            config.model, config.image_size, pretrained=pretrained, drop_path=config.drop_path
        )
    backbone = make_vit(
        config.image_size,
        config.patch_size,
        config.vit_embed_dim,
        config.vit_depth,
        config.heads(),
        mlp_ratio=config.vit_mlp_ratio,
        drop_path=config.drop_path,
    )
    if config.vit_init == "xavier":
        spread_weights(backbone)
    return backbone
