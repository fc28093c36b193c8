"""Compact detector: plain 3x3 convolutions, one output level of stride 8, peaks as detections.

No attention, no deformable sampling and no box matching: it trains in minutes on a CPU, and every
operator of the graph is one that any inference engine has.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tk.runtime.preprocess import ImageSpec
from tk.train.layers import conv
from tk.train.run.checkpoint import (
    classes_of,
    image_spec_of,
    load_checkpoint,
    load_weights,
)

STRIDE = 8
QUERIES = 64
"""Detections per image; the weakest of them are noise."""
MAX_LOG = 5.0
"""Largest log of a distance in strides: 8 * e^5 = 1187 pixels."""
SUPPRESSED = -30.0
"""Logit of a cell that is not a peak: sigmoid gives 1e-13."""


class CompactDetector(nn.Module):
    """Anchor-free one-stage detector: a heat map per class and four distances per cell.

    Args:
        classes: number of classes, C.
        height, width: canvas size in pixels, multiples of 32.
    """

    def __init__(self, classes: int, height: int, width: int) -> None:
        super().__init__()
        # Narrow at high resolution, where nearly all the time goes.
        self.stem = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 32))
        self.level8 = nn.Sequential(conv(32, 64, 2), conv(64, 64), conv(64, 64))
        self.level16 = nn.Sequential(conv(64, 96, 2), conv(96, 96), conv(96, 96))
        self.level32 = nn.Sequential(conv(96, 128, 2), conv(128, 128))
        self.down32 = conv(128, 96)
        self.down16 = conv(96, 64)
        self.smooth = conv(64, 64)
        self.heat = nn.Sequential(conv(64, 64), nn.Conv2d(64, classes, 1))
        self.distance = nn.Sequential(conv(64, 64), nn.Conv2d(64, 4, 1))
        self._start_values()
        rows, columns = height // STRIDE, width // STRIDE
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = torch.stack([x, y, x, y]).float() * STRIDE + STRIDE / 2
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("signs", torch.tensor([-1.0, -1.0, 1.0, 1.0]), persistent=False)
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]), persistent=False)
        self.register_buffer("std", torch.tensor([58.4, 57.1, 57.4]), persistent=False)
        self.centres: Tensor
        self.signs: Tensor
        self.mean: Tensor
        self.std: Tensor

    def _start_values(self) -> None:
        heat, distance = self.heat[-1], self.distance[-1]
        assert isinstance(heat.bias, Tensor) and isinstance(distance.bias, Tensor)
        # Every cell begins as background, or the first steps are spent unlearning false peaks.
        nn.init.normal_(heat.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.constant_(heat.bias, -math.log(0.99 / 0.01))
        nn.init.normal_(distance.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.constant_(distance.bias, 1.5)

    def normalise(self, image: Tensor) -> Tensor:
        """Turn `image: (B, H, W, 3) uint8 RGB` into `(B, 3, H, W) float32`, standardised."""
        return ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def raw(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs that the loss works on.

        Args:
            image: (B, H, W, 3) uint8 RGB.

        Returns:
            heat: (B, C, H/8, W/8) logits, and boxes: (B, 4, H/8, W/8) xyxy in canvas pixels, both
            float32.
        """
        level8 = self.level8(self.stem(self.normalise(image)))
        level16 = self.level16(level8)
        level32 = self.level32(level16)
        merged = level16 + F.interpolate(self.down32(level32), scale_factor=2.0, mode="nearest")
        merged = level8 + F.interpolate(self.down16(merged), scale_factor=2.0, mode="nearest")
        merged = self.smooth(merged)
        return self.heat(merged).float(), self.boxes(self.distance(merged).float())

    def boxes(self, distance: Tensor) -> Tensor:
        """Boxes of `distance: (B, 4, h, w)` logs of left, top, right, bottom in strides."""
        reach = distance.clamp(max=MAX_LOG).exp() * STRIDE
        return self.centres + self.signs[:, None, None] * reach

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Detect.

        Args:
            image: (B, H, W, 3) uint8 RGB.

        Returns:
            boxes: (B, Q, 4) float32 xyxy in canvas pixels, and scores: (B, Q, C) float32 0..1,
            strongest first.
        """
        return self.detections(*self.raw(image))

    def detections(self, heat: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Take the strongest peaks of what `raw` returns; see `forward`."""
        # On logits, not on scores: near 1 half precision makes equal scores of different logits.
        peak = heat == F.max_pool2d(heat, 3, 1, 1)
        logits = torch.where(peak, heat, SUPPRESSED).flatten(2)
        queries = min(QUERIES, logits.shape[2])
        _, cells = logits.amax(dim=1).topk(queries)
        cells = cells[:, None]
        picked = boxes.flatten(2).gather(2, cells.expand(-1, 4, -1))
        scores = logits.gather(2, cells.expand(-1, heat.shape[1], -1)).sigmoid()
        return picked.transpose(1, 2), scores.transpose(1, 2)


def load_detector(path: Path) -> tuple[CompactDetector, dict[str, Any]]:
    """Rebuild the detector of a checkpoint.

    Returns:
        the model in eval mode, and the checkpoint (`classes_of`, `image_spec_of` read it).

    Raises:
        TkError: the file is not a checkpoint of a detector.
    """
    state = load_checkpoint(path, "detector")
    spec: ImageSpec = image_spec_of(state)
    model = CompactDetector(len(classes_of(state)), spec.height, spec.width)
    load_weights(model, state, path)
    return model.eval(), state
