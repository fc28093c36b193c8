"""The embedding network: a timm backbone, a small head, unit length."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from tk.runtime.errors import TkError
from tk.train.embedder.weights import load_backbone

HIDDEN = 512


class EmbedNet(nn.Module):
    """uint8 pictures in, unit vectors out; this is the module that export traces.

    Args:
        model_id: name of a timm model.
        emb_dim: length D of the embedding.
        img_size: height and width of the canvas, pixels.
        head_norm: normalisation inside the head; `layer` where batches are too small for `batch`.
        pretrained: fetch the backbone's published weights.
        weights: a local file with the backbone's weights, instead of `pretrained`; see
            `tk.train.embedder.weights`.

    Attributes:
        feature_size: length F of the backbone's feature.

    Raises:
        TkError: timm knows no such model, or the weights do not fit it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_id: str,
        emb_dim: int = 128,
        img_size: int = 224,
        *,
        head_norm: Literal["batch", "layer"] = "batch",
        pretrained: bool = False,
        weights: Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone = _backbone(model_id, img_size, pretrained=pretrained and weights is None)
        if weights is not None:
            load_backbone(self.backbone, weights)
        # MobileNets have a layer after the pooling, and more features than `num_features`.
        self.feature_size = int(
            getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        )
        self.head = nn.Sequential(
            nn.Linear(self.feature_size, HIDDEN),
            _BatchNorm(HIDDEN) if head_norm == "batch" else nn.LayerNorm(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, emb_dim),
        )
        data = resolve_model_data_config(self.backbone)  # type: ignore[no-untyped-call]
        self.register_buffer("mean", torch.tensor(data["mean"]) * 255)
        self.register_buffer("std", torch.tensor(data["std"]) * 255)

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

    def project(self, feature: Tensor) -> Tensor:
        """Run the head on what `features` gave.

        Args:
            feature: (B, F) float32.

        Returns:
            embedding: (B, D) float32, unit length.
        """
        # Half precision would leave lengths wrong in the third digit.
        return F.normalize(self.head(feature).float(), dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Embed a batch of pictures.

        Args:
            image: (B, H, W, 3) uint8 RGB, already on the canvas.

        Returns:
            embedding: (B, D) float32, unit length.
        """
        return self.project(self.features(image))


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm that falls back on its running statistics for a training batch of one."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] == 1:
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                0.0,
                self.eps,
            )
        return super().forward(input)


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


def _backbone(model_id: str, img_size: int, *, pretrained: bool) -> Any:
    """A timm model without its classifier; ViTs get the canvas size and pool their class token.

    Those with a norm behind the average of their tokens (BEiT, EVA-02) keep to the average: for
    the class token alone they have no trained norm.
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
    try:
        model: Any = timm.create_model(model_id, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        raise TkError(
            f"the weights of {model_id} could not be had: {error}",
            fix="give a file with --weights, or train from scratch with --no-pretrained",
        ) from None
    return model
