"""From a task to batches on a device: a DataLoader whose samples depend on (seed, epoch, index)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tk.runtime.errors import TkError
from tk.train.run.config import TrainConfig
from tk.train.run.distributed import rank, world
from tk.train.run.sampling import Place, batches, parts, sample_rng
from tk.train.run.stop import ignore_in_worker
from tk.train.run.task import TrainTask


class _Samples(Dataset[Any]):
    def __init__(self, task: TrainTask, seed: int) -> None:
        self.task, self.seed = task, seed

    def __getitem__(self, place: Place) -> Any:
        epoch, index = place
        return self.task.sample(index, epoch, sample_rng(self.seed, epoch, index))


class _Batches(Sampler[list[Place]]):
    """This process's parts of the batches of a run from a step on, made as they are needed."""

    def __init__(self, task: TrainTask, config: TrainConfig, start: int) -> None:
        self.task, self.config, self.start = task, config, start

    def __iter__(self) -> Iterator[list[Place]]:
        config = self.config
        order = partial(self.task.order, config.seed)
        for batch in batches(order, config.batch_size, self.start, config.steps):
            yield from parts(batch, config.accumulate, rank(), world())

    def __len__(self) -> int:
        return (self.config.steps - self.start) * self.config.accumulate


def batch_loader(task: TrainTask, config: TrainConfig, start: int) -> DataLoader[Any]:
    """Loader of the batches of steps `start` to `config.steps`, `config.accumulate` parts of each.

    Raises:
        TkError: as `check_batches`.
    """
    check_batches(task, config)
    forks = "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        _Samples(task, config.seed),
        batch_sampler=_Batches(task, config, start),
        num_workers=config.workers,
        collate_fn=task.collate,
        worker_init_fn=_start_worker,
        # Forked workers share the task's images in memory instead of copying them.
        multiprocessing_context="fork" if config.workers and forks else None,
        pin_memory=config.pins_memory() and torch.cuda.is_available(),
        # An own generator: the loader must not draw from the global one, whose state is resumed.
        generator=torch.Generator().manual_seed(config.seed),
    )


def check_batches(task: TrainTask, config: TrainConfig) -> None:
    """Refuse what cannot be trained on.

    Raises:
        TkError: the task has no samples, or batches cannot be divided into equal parts.
    """
    if len(task) == 0:
        raise TkError("there is nothing to train on", found=f"0 samples in {config.data}")
    if config.batch_size % (config.accumulate * world()):
        raise TkError(
            "a batch cannot be divided evenly",
            expected=f"--batch_size divisible by {world()} processes x {config.accumulate} parts",
            found=str(config.batch_size),
        )


def _start_worker(_: int) -> None:
    ignore_in_worker()
    cv2.setNumThreads(0)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
