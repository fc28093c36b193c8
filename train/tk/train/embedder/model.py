"""The embedding network: a timm backbone, a small head, unit length."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from tk.train.backbone import ImageEncoder

HIDDEN = 512


class EmbedNet(ImageEncoder):
    """uint8 pictures in, unit vectors out; this is the module that export traces.

    Args:
        model_id: name of a timm model.
        emb_dim: length D of the embedding.
        img_size: height and width of the canvas, pixels.
        head_norm: normalisation inside the head; `layer` where batches are too small for `batch`.
        pretrained: fetch the backbone's published weights.
        weights: a local file with the backbone's weights, instead of `pretrained`; see
            `tk.train.pretrained.backbone_weights`.

    Raises:
        TkError: timm knows no such model, or the weights do not fit it.
    """

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
        super().__init__(model_id, img_size, pretrained=pretrained, weights=weights)
        self.head = nn.Sequential(
            nn.Linear(self.feature_size, HIDDEN),
            _BatchNorm(HIDDEN) if head_norm == "batch" else nn.LayerNorm(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, emb_dim),
        )

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
