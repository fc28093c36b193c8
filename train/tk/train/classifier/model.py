"""Classifiers: from a feature, or from a picture; these are the modules that export traces."""

from __future__ import annotations

from torch import Tensor, nn

from tk.train.backbone import ImageEncoder


class FeatureClassifier(nn.Module):
    """A head alone: what comes in is the feature of a backbone that runs elsewhere.

    Args:
        head: (B, F) -> (B, C) logits.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Classify features.

        Args:
            feature: (B, F) float32.

        Returns:
            probabilities: (B, C) float32, rows sum to 1.
            logits: (B, C) float32.
        """
        logits = self.head(feature).float()
        return logits.softmax(dim=1), logits


class ImageClassifier(nn.Module):
    """The whole chain: pictures in, probabilities out.

    Args:
        encoder: backbone with its normalisation.
        head: (B, F) -> (B, C) logits, F of the encoder.
    """

    def __init__(self, encoder: ImageEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify pictures.

        Args:
            image: (B, H, W, 3) uint8 RGB, already on the canvas.

        Returns:
            probabilities: (B, C) float32, rows sum to 1.
            logits: (B, C) float32.
        """
        logits = self.head(self.encoder(image)).float()
        return logits.softmax(dim=1), logits
