"""Any of timm's vision transformers with a class token: ViT, DINOv2, DINOv3 (`Eva`) and others."""

from __future__ import annotations

import inspect
from typing import Any

import timm
import torch
from torch import nn

from tk.runtime.errors import TkError
from tk.train.ssl.backbone.base import Backbone


def make_timm(
    name: str, image_size: int, *, pretrained: bool = False, drop_path: float = 0.0
) -> Backbone:
    """Build a model of timm by its name.

    Args:
        image_size: side of the global crops, pixels; a multiple of the model's patch size.
        pretrained: with timm's published weights.

    Raises:
        TkError: timm knows no such model, it is no transformer with a class token, the image size
            does not fit, or its weights cannot be had.
    """
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain) or (tag and name not in timm.list_pretrained(f"{plain}.*")):
        found = timm.list_models(f"{plain.split('_patch')[0]}*")
        raise TkError(
            "timm knows no such model",
            expected=", ".join(found[:8]) or "a name from timm.list_models('vit_*')",
            found=name,
            fix="choose another --model",
        )
    _check(name, image_size)
    options: dict[str, Any] = {"num_classes": 0, "img_size": image_size, "dynamic_img_size": True}
    try:
        vit = timm.create_model(
            name, pretrained=pretrained, global_pool="token", drop_path_rate=drop_path, **options
        )
    except (OSError, RuntimeError) as error:
        raise TkError(
            f"the weights of {name} could not be had: {error}",
            fix="give a file with --weights, or leave --pretrained out",
        ) from None
    return Backbone(vit)


def _check(name: str, image_size: int) -> None:
    """Refuse other models than transformers with a class token, and sizes of half patches."""
    with torch.device("meta"):  # costs no memory: only to ask what kind of model it is
        probe = timm.create_model(name, num_classes=0)
    tokens = isinstance(getattr(probe, "cls_token", None), nn.Parameter)
    parameters = inspect.signature(type(probe).__init__).parameters
    if not (tokens and "dynamic_img_size" in parameters and hasattr(probe, "blocks")):
        raise TkError(
            f"{name} cannot be pre-trained here",
            expected="a vision transformer with a class token",
            found=type(probe).__name__,
            fix="choose another --model: vit_small_patch16_224, vit_small_patch14_dinov2, "
            "vit_small_patch16_dinov3",
        )
    side = int(probe.patch_embed.patch_size[0])  # type: ignore[union-attr,index]
    if image_size % side:
        lower = max(side, image_size // side * side)
        raise TkError(
            f"--image-size does not divide into patches of {side} pixels",
            expected=f"{lower} or {lower + side}",
            found=str(image_size),
        )
