"""The teacher: the student's exponential moving average (DINO, arXiv:2104.14294, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """A copy of the student that no gradient reaches."""
    teacher = deepcopy(student)
    teacher.requires_grad_(False)
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher: t = momentum * t + (1 - momentum) * s, for every parameter.

    Buffers (statistics of batch norm) are the student's: an average of averages would lag twice.

    Args:
        momentum: 0 (the teacher is the student) to 1 (it stays).

    Raises:
        ValueError: the two are not of the same architecture.
    """
    own, new = _named(teacher.named_parameters()), _named(student.named_parameters())
    if own.keys() != new.keys():
        raise ValueError("teacher and student have different parameters")
    kept = list(own.values())
    torch._foreach_mul_(kept, momentum)
    torch._foreach_add_(kept, [new[name].detach() for name in own], alpha=1.0 - momentum)
    buffers = _named(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])


def _named(pairs: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return dict(pairs)
