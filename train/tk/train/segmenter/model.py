"""Compact segmenter prompted by boxes: a light stem on the picture, a small U-Net on each box.

The two parts have the contract of SAM-2: the encoder runs once per picture, the decoder once for
all its boxes. The logits cover the prompt box enlarged by `margin`, whatever its size and shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from tk.runtime.preprocess import ImageSpec
from tk.train.run.checkpoint import config_of, image_spec_of, load_checkpoint

SIDE = 64
"""Logits per side of a mask."""
RIM = 4
"""Cells at the border of a frame that are taken as surroundings."""
FINE, COARSE = 16, 32
"""Channels of the two feature maps."""


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class CompactSegmenter(nn.Module):
    """Masks of boxes.

    Args:
        height, width: canvas size in pixels, multiples of 4.
        margin: what is added to a box on each side, as a share of its longer side.
    """

    def __init__(self, height: int, width: int, margin: float) -> None:
        super().__init__()
        self.height, self.width, self.margin = height, width, margin
        self.fine = nn.Sequential(conv(3, FINE, 2), conv(FINE, FINE))
        self.coarse = nn.Sequential(conv(FINE, COARSE, 2), conv(COARSE, COARSE))
        self.level64 = conv(2 * FINE, 24)
        self.down32 = conv(24, 32, 2)
        self.level32 = conv(32 + 2 * COARSE, 48)
        self.level16 = nn.Sequential(conv(48, 64, 2), conv(64, 64))
        self.level8 = nn.Sequential(conv(64, 96, 2), conv(96, 96), conv(96, 96))
        self.up16, self.up32, self.up64 = conv(96, 64), conv(64, 48), conv(48, 24)
        self.merge16, self.merge32, self.merge64 = conv(64, 64), conv(48, 48), conv(24, 24)
        # Where a cell lies in the frame is the prompt: the box always has the same place there.
        self.place32 = nn.Parameter(torch.zeros(1, 48, SIDE // 2, SIDE // 2))
        self.place8 = nn.Parameter(torch.zeros(1, 96, SIDE // 8, SIDE // 8))
        # Every level votes, so that the coarse ones learn from the first step on.
        self.votes = nn.ModuleList([nn.Conv2d(width, 1, 1) for width in (24, 48, 64, 96)])
        self.quality = nn.Sequential(nn.Linear(96 + 24, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]), persistent=False)
        self.register_buffer("std", torch.tensor([58.4, 57.1, 57.4]), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of whole pictures.

        Args:
            image: (B, H, W, 3) uint8 RGB, on the canvas.

        Returns:
            fine: (B, 16, H/2, W/2) and coarse: (B, 32, H/4, W/4), both float32.
        """
        fine = self.fine(((image.float() - self.mean) / self.std).permute(0, 3, 1, 2))
        return fine.float(), self.coarse(fine).float()

    def decode(self, fine: Tensor, coarse: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of the boxes of one picture.

        Args:
            fine, coarse: features of one picture, B = 1.
            boxes: (N, 4) float32 xyxy, canvas pixels.

        Returns:
            logits: (N, 64, 64) float32, covering `frames(boxes)`, and iou: (N,) float32 0..1, how
            well the mask is thought to fit.
        """
        logits, quality = self.decode_many(fine, coarse, boxes, torch.zeros_like(boxes[:, 0]))
        return logits, quality.sigmoid()

    def decode_many(
        self, fine: Tensor, coarse: Tensor, boxes: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`decode` for boxes of several pictures, with the logit of the IoU.

        Args:
            index: (N,) float32, row of `fine` and `coarse` that each box belongs to.
        """
        rois = torch.cat([index[:, None], self.frames(boxes)], dim=1)
        x64 = self.level64(self._against_rim(_sample(fine, rois, SIDE, 1 / 2)))
        coarse = self._against_rim(_sample(coarse, rois, SIDE // 2, 1 / 4))
        x32 = torch.cat([self.down32(x64), coarse], dim=1)
        x32 = self.level32(x32) + self.place32
        x16 = self.level16(x32)
        x8 = self.level8(x16) + self.place8
        x16 = self.merge16(x16 + _double(self.up16(x8)))
        x32 = self.merge32(x32 + _double(self.up32(x16)))
        x64 = self.merge64(x64 + _double(self.up64(x32)))
        logits = self._vote(x64, x32, x16, x8)
        summary = torch.cat([x8.mean(dim=(2, 3)), x64.mean(dim=(2, 3))], dim=1)
        return logits, self.quality(summary)[:, 0].float()

    def _against_rim(self, x: Tensor) -> Tensor:
        """Append how much each cell differs from the surroundings of the box."""
        side = x.shape[2]
        width = RIM * side // SIDE
        inner = x[:, :, width:-width, width:-width]
        count = side**2 - (side - 2 * width) ** 2
        rim = (x.sum(dim=(2, 3), keepdim=True) - inner.sum(dim=(2, 3), keepdim=True)) / count
        return torch.cat([x, (x - rim).abs()], dim=1)

    def _vote(self, *levels: Tensor) -> Tensor:
        """Sum of the levels' logits, finest first, at the size of the finest."""
        total: Tensor = self.votes[-1](levels[-1])
        for vote, level in zip(self.votes[-2::-1], levels[-2::-1], strict=True):
            total = vote(level) + F.interpolate(total, scale_factor=2.0, mode="bilinear")
        return total[:, 0].float()

    def frames(self, boxes: Tensor) -> Tensor:
        """Rectangles that the logits cover, `(N, 4) float32 xyxy`: `tk.runtime.boxes.enlarge`."""
        step = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) * self.margin
        return torch.cat([boxes[:, :2] - step, boxes[:, 2:] + step], dim=1)


def _sample(features: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    # One sample per cell: four would make this a third of the time of a training step.
    sampled: Tensor = roi_align(features, rois, side, scale, sampling_ratio=1, aligned=True)
    return sampled


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def load_segmenter(path: Path) -> tuple[CompactSegmenter, dict[str, Any]]:
    """Rebuild the segmenter of a checkpoint.

    Returns:
        the model in eval mode (its `margin` is the manifest's `frame_margin`), and the checkpoint.

    Raises:
        TkError: the file is not a checkpoint of a segmenter.
    """
    state = load_checkpoint(path, "segmenter")
    spec: ImageSpec = image_spec_of(state)
    model = CompactSegmenter(spec.height, spec.width, float(config_of(state)["margin"]))
    model.load_state_dict(state["model"])
    return model.eval(), state
