"""Compact box-prompted segmenter: each box is resampled to one size, and a small U-Net cuts it out.

The prompt is where the pixels lie: the box always has the same place in its frame, so no prompt
encoder is needed, and a mask has the same resolution whatever the size of its object. The parts
are those of SAM-2, so the runtime tells no difference; the encoder has little to do here, because
for the few boxes of a picture whole-canvas features cost more than features of each frame, and
training then needs no resampling of features, whose backward pass took a quarter of a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from tk.train.layers import conv
from tk.train.run.checkpoint import config_of, load_checkpoint, load_weights

CROP = 128
"""Side of a resampled frame, pixels."""
SIDE = CROP // 2
"""Logits per side of a mask."""
RIM = 6
"""Pixels at the border of a frame that are taken as surroundings."""
WIDTHS = (16, 40, 64, 96)
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the frame: narrow where nearly all the time goes."""
PAD = 114.0
"""Grey that becomes zero: letterbox padding and the outside of the canvas look alike."""
SPREAD = 58.0


class CompactSegmenter(nn.Module):
    """Masks of boxes.

    Args:
        margin: what is added to a box on each side, as a share of its longer side.
    """

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin
        a, b, c, d = WIDTHS
        self.down2 = nn.Sequential(conv(6, a, 2), conv(a, a))
        self.down4 = nn.Sequential(conv(a, b, 2), conv(b, b))
        self.down8 = nn.Sequential(conv(b, c, 2), conv(c, c))
        self.down16 = nn.Sequential(conv(c, d, 2), conv(d, d), conv(d, d))
        self.up8, self.up4, self.up2 = conv(d, c), conv(c, b), conv(b, a)
        self.merge8, self.merge4, self.merge2 = conv(c, c), conv(b, b), conv(a, a)
        # Where a cell lies in the frame is the prompt, and convolutions do not know it.
        self.place4 = nn.Parameter(torch.zeros(1, b, CROP // 4, CROP // 4))
        self.place16 = nn.Parameter(torch.zeros(1, d, CROP // 16, CROP // 16))
        # Every level votes, so that the coarse ones learn from the first step on.
        self.votes = nn.ModuleList([nn.Conv2d(width, 1, 1) for width in WIDTHS])
        self.quality = nn.Sequential(nn.Linear(a + d, 64), nn.ReLU(), nn.Linear(64, 1))
        rim = torch.ones(CROP, CROP)
        rim[RIM:-RIM, RIM:-RIM] = 0
        self.register_buffer("rim", rim / rim.sum(), persistent=False)
        self.rim: Tensor

    def encode(self, image: Tensor) -> Tensor:
        """What the decoder samples: the canvas itself, scaled.

        Args:
            image: (B, H, W, 3) uint8 RGB, on the canvas.

        Returns:
            pixels: (B, 3, H, W) float32, 0 where the canvas is padding.
        """
        return ((image.float() - PAD) / SPREAD).permute(0, 3, 1, 2)

    def decode(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of the boxes of one picture.

        Args:
            pixels: of one picture, B = 1.
            boxes: (N, 4) float32 xyxy, canvas pixels.

        Returns:
            logits: (N, 64, 64) float32, covering `frames(boxes)`, and iou: (N,) float32 0..1, how
            well the mask is thought to fit.
        """
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), self.frames(boxes)], dim=1)
        # Four samples per pixel, as training's warp to twice the size and halving.
        crops = roi_align(pixels, rois, CROP, 1.0, sampling_ratio=2, aligned=True)
        logits, quality = self.cut_out(crops)
        return logits, quality.sigmoid()

    def cut_out(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of resampled frames.

        Args:
            crops: (N, 3, 128, 128) float32, as `encode` scales them.

        Returns:
            logits: (N, 64, 64) float32, and the logit of the IoU, (N,) float32.
        """
        # How each pixel differs from what lies around the object.
        around = (crops * self.rim).sum(dim=(2, 3), keepdim=True)
        x2 = self.down2(torch.cat([crops, (crops - around).abs()], dim=1))
        x4 = self.down4(x2) + self.place4
        x8 = self.down8(x4)
        x16 = self.down16(x8) + self.place16
        x8 = self.merge8(x8 + _double(self.up8(x16)))
        x4 = self.merge4(x4 + _double(self.up4(x8)))
        x2 = self.merge2(x2 + _double(self.up2(x4)))
        summary = torch.cat([x16.mean(dim=(2, 3)), x2.mean(dim=(2, 3))], dim=1)
        return self._vote(x2, x4, x8, x16), self.quality(summary)[:, 0].float()

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
    model = CompactSegmenter(float(config_of(state)["margin"]))
    load_weights(model, state, path)
    return model.eval(), state
