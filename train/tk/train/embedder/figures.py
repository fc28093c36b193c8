"""Figures of one split: loss, accuracy, macro-F1, macro AUC, per class, retrieval."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tk.runtime.metrics.classification import accuracy, macro_auc, macro_f1, per_class
from tk.runtime.metrics.retrieval import map_at_r, recall_at_1
from tk.train.run.distributed import gather


def class_figures(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Closed-set figures.

    Args:
        labels: (N,) int64, N >= 1.
        probabilities: (N, C) float32, rows add up to 1.
        classes: (C,) names.

    Returns:
        accuracy, macro_f1, macro_auc, and per_class: name -> precision, recall, f1, auc, support.
        What is not defined (the AUC of a class that does not occur) is None.
    """
    predicted = probabilities.argmax(axis=1)
    tables = {
        name: _without_nan(asdict(figures))
        for name, figures in zip(classes, per_class(labels, probabilities), strict=True)
    }
    plain = {
        "accuracy": accuracy(labels, predicted),
        "macro_f1": macro_f1(labels, predicted),
        "macro_auc": macro_auc(labels, probabilities),
    }
    return {**_without_nan(plain), "per_class": tables}


def retrieval_figures(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, float | None]:
    """recall@1 and mAP@R among the crops of a split, each searched for among the others."""
    plain = {
        "recall_at_1": recall_at_1(embeddings, labels),
        "map_at_r": map_at_r(embeddings, labels),
    }
    return _without_nan(plain)


def cross_entropy(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """Mean loss of (N, C) logits without a margin."""
    return float(F.cross_entropy(logits, torch.from_numpy(labels)))


def _without_nan(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in figures.items()}


CELLS = 20_000_000
"""Probabilities that are kept of training batches, at most (80 MB): the latest ones."""


class Running:
    """What training batches have shown since the last evaluation, on augmented crops.

    Its state is part of a checkpoint, so that the figures of an epoch that was interrupted are
    those of the whole epoch.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.labels = [np.zeros(0, np.int64)]
        self.probabilities = [np.zeros((0, len(self.classes)), np.float32)]
        self.losses = [np.zeros(0, np.float32)]
        self._cells = 0

    def add(self, labels: Tensor, logits: Tensor) -> None:
        """Take in a batch.

        Args:
            labels: (B,) int64.
            logits: (B, C) float32, without the margin.
        """
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.labels.append(labels.cpu().numpy())
        self.probabilities.append(logits.detach().float().softmax(dim=1).cpu().numpy())
        self.losses.append(losses.detach().float().cpu().numpy())
        self._cells += self.probabilities[-1].size
        while self._cells > CELLS and len(self.labels) > 1:
            self._cells -= self.probabilities.pop(0).size
            del self.labels[0], self.losses[0]

    def state(self) -> dict[str, Tensor]:
        """Everything seen, of all processes; all must call it."""
        own = (self.labels, self.probabilities, self.losses)
        found = gather([np.concatenate(rows) for rows in own])
        joined = [torch.from_numpy(np.concatenate(rows)) for rows in zip(*found, strict=True)]
        return dict(zip(("labels", "probabilities", "losses"), joined, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave, in one of the processes."""
        self.labels = [state["labels"].numpy()]
        self.probabilities = [state["probabilities"].numpy()]
        self.losses = [state["losses"].numpy()]
        self._cells = self.probabilities[0].size

    def figures(self) -> dict[str, Any]:
        """Mean loss without margin, and `class_figures`; {} if nothing was seen.

        All processes must call it.
        """
        seen = self.state()
        if not len(seen["labels"]):
            return {}
        closed = class_figures(seen["labels"].numpy(), seen["probabilities"].numpy(), self.classes)
        # Sorted, because which process saw what must not show in the last digit.
        loss = float(np.sort(seen["losses"].numpy()).astype(np.float64).mean())
        return {"loss": loss, **closed}
