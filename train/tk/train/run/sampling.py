"""Which samples make which batch: a function of (seed, step) alone.

Samples are one endless stream: epoch 0 in its order, then epoch 1, and so on; batch k is the k-th
slice of the stream. So a run can start at any step, and neither the number of workers nor an
interruption changes what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, int]
"""(epoch, index) of one training sample."""

_ORDER, _SAMPLE = 0, 1  # two kinds of streams of the same seed never share random numbers


def epoch_permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of the samples 0..count-1 in an epoch."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count).astype(np.int64)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for the augmentation of one sample in one epoch."""
    return np.random.default_rng((seed, _SAMPLE, epoch, index))


def batches(
    order: Callable[[int], NDArray[np.int64]], batch_size: int, start: int, stop: int
) -> Iterator[list[Place]]:
    """Yield the batches of steps `start` <= step < `stop`.

    Args:
        order: epoch -> (n,) int64 indices of the samples of that epoch, n >= 1 the same for all.
        batch_size: samples per batch; batches are always full and may reach into the next epoch.
    """
    size = len(order(0))
    epoch, position = divmod(start * batch_size, size)
    indices = order(epoch)
    for _ in range(start, stop):
        batch: list[Place] = []
        while len(batch) < batch_size:
            taken = indices[position : position + batch_size - len(batch)]
            batch.extend((epoch, int(index)) for index in taken)
            position += len(taken)
            if position == size:
                epoch, position = epoch + 1, 0
                indices = order(epoch)
        yield batch


def parts(batch: list[Place], count: int, rank: int, world: int) -> Iterator[list[Place]]:
    """Divide a batch into `count` parts for each of `world` processes; yield those of `rank`.

    All parts are equally large, so the mean of their means is the mean of the batch, whatever the
    number of parts and processes.
    """
    for number in range(count):
        yield batch[number * world + rank :: count * world]


def epoch_of(step: int, batch_size: int, size: int) -> int:
    """Epoch in which the samples of `step` begin."""
    return step * batch_size // size
