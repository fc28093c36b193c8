"""What a training has to say for itself; the loop does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from tk.runtime.preprocess import CropSpec, ImageSpec
from tk.train.run.config import TrainConfig
from tk.train.run.sampling import epoch_of, epoch_permutation
from tk.train.run.schedule import warmup_cosine


class TrainTask(ABC):
    """One training: model, samples, loss, evaluation.

    Attributes:
        name: the task in the checkpoint (`detector`, `segmenter`, `embedder`, ...).
        best_metric: key of `evaluate()` by which `checkpoint_best.pth` is chosen, the larger the
            better; empty: the last is the best.
        tie_metric: key that decides between equally good ones; the larger, the better.
        betas, eps: of AdamW; 0.99 for the second beta suits runs of a few hundred steps.
        model: what is exported; its state dict is `model` in the checkpoint.
        classes, image_spec, crop_spec: kept in the checkpoint for export and runtime.
        architecture: JSON text kept there too, for models that config alone does not describe.
    """

    name: ClassVar[str]
    best_metric: str = ""
    tie_metric: ClassVar[str] = ""
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    eps: float = 1e-8

    model: nn.Module
    classes: tuple[str, ...] = ()
    image_spec: ImageSpec
    crop_spec: CropSpec | None = None
    architecture: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of training samples in an epoch."""

    @abstractmethod
    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Any:
        """Make one training sample; may run in a worker process.

        Args:
            index: 0 to len(self) - 1.
            epoch: pass over the samples, from 0.
            rng: numbers that depend on (seed, epoch, index) alone; there must be no other
                randomness.
        """

    def begin(self, device: torch.device) -> None:  # noqa: B027 - most have nothing to do
        """Called once before the first step, when weights are loaded and on their device."""

    @abstractmethod
    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars of one batch: `loss` is minimised, the others are logged.

        Args:
            batch: what `collate` made, moved to the device.
            step: optimizer step, from 0.
        """

    def evaluate(self) -> dict[str, Any]:
        """Figures on the held-out share; called in eval mode without gradients.

        With several processes all of them call it together, and all must return the same.

        Returns:
            name -> number, or a table of numbers (class -> figure -> number).
        """
        return {}

    def collate(self, samples: Sequence[Any]) -> Any:
        """Make a batch of samples (in the worker process)."""
        return default_collate(list(samples))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Indices of the samples of an epoch, `len(self)` of them; override to balance."""
        return epoch_permutation(seed, epoch, len(self))

    def data_facts(self) -> dict[str, str]:
        """What the data are, by name: a resume is refused when it differs."""
        return {}

    def epoch(self, step: int, batch_size: int) -> int:
        """Epoch that a step (from 0) is counted to, from 0."""
        return epoch_of(step, batch_size, len(self))

    def parts(self) -> nn.ModuleDict:
        """Everything that has weights, `model` among it; other parts are not exported."""
        return nn.ModuleDict({"model": self.model})

    def shards(self) -> list[nn.Module]:
        """Modules to shard over the processes, inner ones first (`tk.train.run.sharding.shard`).

        Returns:
            none, the usual: every process holds all weights.
        """
        return []

    def train_mode(self) -> None:
        """Enter training mode; override to keep frozen parts in eval mode."""
        self.model.train()

    def facts(self) -> dict[str, Any]:
        """What config.json should say beside options and optimizer (the loss, sizes of splits)."""
        return {}

    def tag(self, done: int) -> str:
        """Name of the checkpoint after `done` steps, if it is kept: `checkpoint_TAG.pth`."""
        return f"step{done:06d}"

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups; `lr_scale` of a group multiplies the scheduled learning rate."""
        return decay_groups(self.model, weight_decay)

    def learning_rate(self, step: int, config: TrainConfig) -> float:
        """Scheduled learning rate of optimizer step `step` (from 0)."""
        return warmup_cosine(step, config.steps, config.warmup, config.lr)

    def before_update(self, step: int, groups: list[dict[str, Any]]) -> None:  # noqa: B027
        """Called with the optimizer's groups when gradients are there and not yet clipped.

        May set `lr` and `weight_decay` of a group, and drop gradients (None: such a parameter
        neither moves nor decays).
        """

    def after_step(self, step: int) -> None:  # noqa: B027 - most have nothing to do
        """Called after optimizer step `step` (a moving average of the weights, say)."""

    def remarks(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """What a record of the metrics gives cause to say.

        Called in all processes, which have the same figures, after each step and evaluation.

        Returns:
            records of their own for the metrics, each with `event`, and `text` for the user.
        """
        return []

    def saved(self, path: Path, done: int) -> None:  # noqa: B027
        """Called in process 0 when a checkpoint of the state after `done` steps was written."""

    def extra_state(self) -> dict[str, Any]:
        """State beside weights and optimizer (tensors, numbers, strings, dicts of these).

        With several processes all of them call it together; that of process 0 is kept.
        """
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what `extra_state` gave."""


def decay_groups(
    model: nn.Module, weight_decay: float, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and kernels decay, biases and norms do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": plain, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
    return [group for group in groups if group["params"]]
