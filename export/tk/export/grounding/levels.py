"""Feature levels on a canvas that is partly picture: masks, positions, first boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EDGE = 0.01
"""Places nearer to the edge of the picture than this share of its side propose no box."""

NOWHERE = 100.0
"""Logit of a box that must not move. The library has infinity, which fp16 and lint cannot take;
the sigmoid of both is exactly 1."""


class Levels(nn.Module):
    """Masks, positions and reference sizes of the feature levels, from the valid size alone.

    The valid part of a canvas is a rectangle at its top left corner, so the library's cumulative
    sums over masks have closed forms: no CumSum, which TensorRT runs as a loop.

    Args:
        canvas: (height, width), pixels.
        shapes: (height, width) of each level.
        width: channels of the positions, `d_model`.
        temperature: of the sine positions.
    """

    wavelengths: Tensor

    def __init__(
        self,
        canvas: tuple[int, int],
        shapes: list[tuple[int, int]],
        width: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.shapes = shapes
        channels = torch.arange(width // 2)
        exponent = 2 * torch.div(channels, 2, rounding_mode="floor") / (width // 2)
        self.register_buffer("wavelengths", temperature**exponent, persistent=False)
        for level, shape in enumerate(shapes):
            for axis in (0, 1):
                table = _nearest(canvas[axis], shape[axis])
                self.register_buffer(f"source_{level}_{axis}", table, persistent=False)

    def forward(self, valid_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Describe all levels of all pictures.

        Args:
            valid_hw: (B, 2) int32, rows and columns of the canvas that are picture.

        Returns:
            mask: (B, S) bool, True for picture, levels one after the other.
            positions: (B, S, D) float32, without the embedding of the level.
            ratios: (B, levels, 2) float32, share of (width, height) that is picture.
        """
        masks, positions, ratios = [], [], []
        for level, (height, width) in enumerate(self.shapes):
            rows = self.get_buffer(f"source_{level}_0") < valid_hw[:, :1]
            columns = self.get_buffer(f"source_{level}_1") < valid_hw[:, 1:]
            masks.append((rows[:, :, None] & columns[:, None, :]).flatten(1))
            y, x = self._waves(rows), self._waves(columns)
            y = y[:, :, None].expand(-1, -1, width, -1)
            x = x[:, None].expand(-1, height, -1, -1)
            positions.append(torch.cat([y, x], -1).flatten(1, 2))
            valid = [columns.float().mean(1), rows.float().mean(1)]
            ratios.append(torch.stack(valid, -1))
        return torch.cat(masks, 1), torch.cat(positions, 1), torch.stack(ratios, 1)

    def proposals(self, valid_hw: Tensor) -> tuple[Tensor, Tensor]:
        """First boxes, one per place (`generate_encoder_output_proposals`).

        Args:
            valid_hw: (B, 2) int32, rows and columns of the canvas that are picture.

        Returns:
            boxes: (B, S, 4) float32 cxcywh, relative to the picture, as logits; `NOWHERE` for
                places at its edge or outside.
            likely: (B, S, 1) bool, True for the others.
        """
        boxes, inside = [], []
        for level, (height, width) in enumerate(self.shapes):
            y, y_inside = _centres(self.get_buffer(f"source_{level}_0") < valid_hw[:, :1])
            x, x_inside = _centres(self.get_buffer(f"source_{level}_1") < valid_hw[:, 1:])
            x, y = x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
            likely = (y_inside[:, :, None] & x_inside[:, None])[..., None]
            side = torch.full((1, height, width), _logit(0.05 * 2.0**level))
            side = side.expand(x.shape[0], -1, -1)
            box = torch.where(likely, torch.stack([x, y, side, side], -1), NOWHERE)
            boxes.append(box.flatten(1, 2))
            inside.append(likely.flatten(1, 2))
        return torch.cat(boxes, 1), torch.cat(inside, 1)

    def _waves(self, valid: Tensor) -> Tensor:
        """Sine positions along one axis: valid (B, n) bool -> (B, n, D / 2)."""
        count = valid.sum(1, keepdim=True, dtype=torch.int32)
        place = torch.arange(1, valid.shape[1] + 1, dtype=torch.int32)
        share = torch.minimum(place, count).float() / (count.float() + 1e-6) * (2 * math.pi)
        angle = share[..., None] / self.get_buffer("wavelengths")
        return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def _centres(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of places along one axis.

    Args:
        valid: (B, n) bool.

    Returns:
        Logits of the centres (B, n), relative to the picture, and which are not at its edge.
    """
    place = torch.arange(valid.shape[1], dtype=torch.float32)[None] + 0.5
    share = place / valid.sum(1, keepdim=True, dtype=torch.int32)
    inside = (share > EDGE) & (share < 1 - EDGE)
    share = share.clamp(EDGE, 1 - EDGE)
    return torch.log(share / (1 - share)), inside


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _nearest(source: int, target: int) -> Tensor:
    """Which of `source` rows the library's nearest resize takes for each of `target` rows."""
    rows = torch.arange(source, dtype=torch.float32)[None, None]
    return F.interpolate(rows, size=target)[0, 0].to(torch.int32)[None]
