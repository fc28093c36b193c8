"""Several processes that train one model; every function here also works in a single process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray


def rank() -> int:
    """Number of this process, 0 for the one that writes files and talks to the user."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this process writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        any_of(False)  # a reduction on the CPU group: needs no GPU, unlike dist.barrier of NCCL


def any_of(flag: bool) -> bool:
    """Say whether the flag is up in any process."""
    if world() == 1:
        return flag
    value = torch.tensor([int(flag)])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def mean_of(values: torch.Tensor) -> torch.Tensor:
    """Mean of a CPU tensor over the processes."""
    if world() > 1:
        dist.all_reduce(values)
        values /= world()
    return values


def gather(value: Any) -> list[Any]:
    """The value of every process, in the order of their ranks; all must call it."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def first(value: Any) -> Any:
    """What process 0 has: a decision that all must take alike is process 0's."""
    return gather(value)[0]


def broadcast(tensors: list[torch.Tensor]) -> None:
    """Fill tensors with the values that process 0 has."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def share(count: int) -> range:
    """Rows of a table of `count` that are this process's to compute: every `world()`-th."""
    return range(rank(), count, world())


def gather_shares(mine: NDArray[Any], count: int) -> NDArray[Any]:
    """Put the rows that all processes computed for their `share(count)` in order.

    Args:
        mine: (len(share(count)), ...) rows of this process.

    Returns:
        (count, ...) rows, the same in every process.
    """
    if world() == 1:
        return mine
    whole = np.empty((count, *mine.shape[1:]), mine.dtype)
    for number, rows in enumerate(gather(mine)):
        whole[number :: world()] = rows
    return whole
