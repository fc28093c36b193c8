"""A timm backbone: uint8 pictures in, one feature vector out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.train.pretrained.backbone_weights import load_backbone


def make_backbone(model_id: str, img_size: int, *, pretrained: bool) -> Any:
    """A timm model without its classifier; ViTs get the canvas size and pool their class token.

    Those with a norm behind the average of their tokens (BEiT, EVA-02) keep to the average: for
    the class token alone they have no trained norm.

    Raises:
        TkError: timm knows no such model, it cannot have this canvas, or its published weights
            cannot be had.
    """
    options = check_backbone(model_id, img_size)
    try:
        model: Any = timm.create_model(model_id, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        raise TkError(
            f"the weights of {model_id} could not be had: {error}",
            fix="give a file with --weights, or train from scratch with --no-pretrained",
        ) from None
    return model


def check_backbone(model_id: str, img_size: int) -> dict[str, Any]:
    """Ask whether there is such a backbone, at no cost.

    Returns:
        options that timm makes it with.

    Raises:
        TkError: timm knows no such model, or it cannot have this canvas.
    """
    name, _, tag = model_id.partition(".")
    if not timm.is_model(name) or (tag and model_id not in timm.list_pretrained(f"{name}.*")):
        found = timm.list_pretrained(f"{name}*") or timm.list_models(f"*{name.split('_')[0]}*")
        raise TkError(
            "timm knows no such model",
            expected=", ".join(found[:8]) or "a name from timm.list_models()",
            found=model_id,
            fix="choose another --model_id",
        )
    options: dict[str, Any] = {"num_classes": 0}
    with torch.device("meta"):  # costs no memory: only to ask what kind of model it is
        probe = timm.create_model(model_id, **options)
    if "img_size" in inspect.signature(type(probe).__init__).parameters:
        options["img_size"] = img_size
        _check_patch(probe, img_size)
    averages = isinstance(getattr(probe, "fc_norm", None), nn.LayerNorm)
    if getattr(probe, "cls_token", None) is not None and not averages:
        options["global_pool"] = "token"
    return options


def _check_patch(probe: Any, img_size: int) -> None:
    """Refuse a canvas that does not divide into the patches of a ViT."""
    patch = getattr(getattr(probe, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if side and img_size % side:
        lower = max(side, img_size // side * side)
        raise TkError(
            f"--img_size does not divide into patches of {side} pixels",
            expected=f"{lower} or {lower + side}",
            found=str(img_size),
        )


def feature_size(backbone: Any) -> int:
    """Length of the feature that a backbone gives.

    MobileNets have a layer after the pooling, and more features than `num_features`.
    """
    return int(getattr(backbone, "head_hidden_size", backbone.num_features))


def channel_scale(backbone: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels that a backbone was made for: (3,) float32, 0..255."""
    data = resolve_model_data_config(backbone)  # type: ignore[no-untyped-call]
    return torch.tensor(data["mean"]) * 255, torch.tensor(data["std"]) * 255


class ImageEncoder(nn.Module):
    """A backbone with its normalisation.

    Args:
        model_id: name of a timm model.
        img_size: height and width of the canvas, pixels.
        pretrained: fetch the published weights.
        weights: a local file with them, instead of `pretrained`; see
            `tk.train.pretrained.backbone_weights`.

    Attributes:
        feature_size: length F of the feature.

    Raises:
        TkError: timm knows no such model, or the weights do not fit it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_id: str,
        img_size: int = 224,
        *,
        pretrained: bool = False,
        weights: Path | None = None,
    ) -> None:
        super().__init__()
        self.model_id = model_id
        self.img_size = img_size
        self.backbone = make_backbone(model_id, img_size, pretrained=pretrained and weights is None)
        if weights is not None:
            load_backbone(self.backbone, weights)
        self.feature_size = feature_size(self.backbone)
        mean, std = channel_scale(self.backbone)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def features(self, image: Tensor) -> Tensor:
        """Run the backbone.

        Args:
            image: (B, H, W, 3) uint8 RGB, already on the canvas.

        Returns:
            feature: (B, F) float32, under autocast too.
        """
        scaled = (image.float() - self.mean) / self.std
        feature: Tensor = self.backbone(scaled.permute(0, 3, 1, 2))
        return feature.float()

    def forward(self, image: Tensor) -> Tensor:
        """The same as `features`."""
        return self.features(image)
