"""What a classifier costs: multiply-adds of its layers, backbone and head together."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tk.train.backbone import ImageEncoder


def multiply_adds(encoder: ImageEncoder) -> float:
    """Multiply-adds (MACs) of one picture through a backbone.

    PyTorch counts two floating-point operations for each; matrix products, convolutions and
    attention are counted, sums and norms are not.
    """
    device = next(encoder.parameters()).device
    size = encoder.img_size
    picture = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
    training = encoder.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        encoder.eval()(picture)
    encoder.train(training)
    return counter.get_total_flops() / 2


def head_multiply_adds(head: nn.Module) -> float:
    """Multiply-adds of one feature through a head: one for each weight of its linear layers."""
    return float(sum(weight.numel() for weight in head.parameters() if weight.ndim == 2))
