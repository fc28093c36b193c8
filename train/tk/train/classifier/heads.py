"""Heads on the feature of a backbone: a linear probe and two small networks.

The networks are those of the seed of defect distillation: with 384 features and 4 classes they have
exactly 1540, 57796 and 26852 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn


@dataclass(frozen=True)
class HeadShape:
    """Hidden layers of a head.

    Attributes:
        hidden: their widths; none: a linear classifier.
        dropout: share of the first hidden layer that is dropped in training.
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


LINEAR = HeadShape()
TEACHER = HeadShape((128, 64), 0.3)
STUDENT = HeadShape((64, 32))


def make_head(shape: HeadShape, features: int, classes: int) -> nn.Sequential:
    """A head with fresh weights: linear layers with ReLU between.

    Args:
        features: length F of what goes in.
        classes: number C of logits that come out.

    Returns:
        (B, F) float32 -> (B, C) float32 logits.
    """
    widths = (features, *shape.hidden)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Linear(before, after), nn.ReLU()]
        if index == 0 and shape.dropout:
            layers.append(nn.Dropout(shape.dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def count_parameters(module: nn.Module) -> int:
    """Number of weights of a module, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())
