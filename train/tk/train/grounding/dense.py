"""Which places of the encoder show which object: many places for one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REACH = 1.5
"""Places within so many strides of an object's centre, and inside its box, show it (FCOS)."""
SPAN = 8.0
"""A level is for objects whose longer side is at most so many of its strides."""


@dataclass(frozen=True)
class Places:
    """Places of all levels, one level after the other, on a canvas.

    Attributes:
        centres: (S, 2) float32, x and y, canvas pixels.
        strides: (S,) float32, canvas pixels.
        levels: (S,) int64.
        valid: (B, 2) float32, width and height of each picture, canvas pixels.
    """

    centres: Tensor
    strides: Tensor
    levels: Tensor
    valid: Tensor


def make_places(
    shapes: Sequence[tuple[int, int]], height: int, width: int, valid_hw: Tensor
) -> Places:
    """Describe the places of levels of `shapes` on a canvas of `height` x `width` pixels."""
    device = valid_hw.device
    centres, strides, levels = [], [], []
    for level, (rows, columns) in enumerate(shapes):
        y = (torch.arange(rows, device=device) + 0.5) * (height / rows)
        x = (torch.arange(columns, device=device) + 0.5) * (width / columns)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        centres.append(grid)
        strides.append(torch.full((len(grid),), height / rows, device=device))
        levels.append(torch.full((len(grid),), level, device=device))
    return Places(
        torch.cat(centres), torch.cat(strides), torch.cat(levels), valid_hw.flip(1).float()
    )


def assign_places(
    places: Places, usable: Tensor, boxes: Tensor, pictures: Tensor
) -> tuple[Tensor, Tensor]:
    """Give each object the places near its centre on the level that fits its size.

    A place that fits several objects shows the smallest. An object without a place, too small or
    at the edge, takes the nearest one of its level.

    Args:
        places: of the canvas.
        usable: (B, S) bool, places that propose a box.
        boxes: (N, 4) float32 cxcywh, relative to the picture.
        pictures: (N,) int64, the picture of each object.

    Returns:
        place in B * S and object of each pair, int64.
    """
    size = places.valid[pictures]
    centre, side = boxes[:, :2] * size, boxes[:, 2:] * size
    count = int(places.levels.max()) + 1
    stride = torch.stack([places.strides[places.levels == level][0] for level in range(count)])
    wanted = (side.amax(1)[:, None] > SPAN * stride[None, :-1]).sum(1)
    away = (places.centres[None] - centre[:, None]).abs()
    own = (places.levels[None] == wanted[:, None]) & usable[pictures]
    near = (away <= REACH * places.strides[None, :, None]).all(-1)
    fits = own & near & (away <= side[:, None] / 2).all(-1)
    distance = torch.where(own, away.square().sum(-1), torch.inf)
    lonely = ~fits.any(1) & own.any(1)
    fits[lonely, distance[lonely].argmin(1)] = True
    area = torch.where(fits, side.prod(1)[:, None].expand_as(distance), torch.inf)
    # Smallest object per picture and place.
    least = torch.full(usable.shape, torch.inf, device=boxes.device)
    least = least.scatter_reduce(0, pictures[:, None].expand_as(area), area, "amin")
    chosen = fits & (area <= least[pictures])
    thing, place = chosen.nonzero(as_tuple=True)
    cell = pictures[thing] * usable.shape[1] + place
    # Objects of exactly one size: the first takes the place.
    taken = torch.full((usable.numel(),), len(boxes), device=boxes.device)
    taken = taken.scatter_reduce(0, cell, thing, "amin")
    first = taken[cell] == thing
    return cell[first], thing[first]
