"""Train one head on features: from labels, from a teacher's answers, or in closed optimisation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from tk.runtime.errors import TkError
from tk.train.classifier.heads import LINEAR, HeadShape, make_head
from tk.train.classifier.kd import kd_loss

MAX_ITERATIONS = 1000
"""Of the linear probe, as in the seed."""


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        epochs: passes over the features.
        lr: learning rate of Adam.
        batch_size: features per step.
        temperature: T of the distillation.
        alpha: weight of the teacher's answers; 1 - alpha that of the labels.
    """

    epochs: int
    lr: float
    batch_size: int = 32
    temperature: float = 3.0
    alpha: float = 0.7


@dataclass(frozen=True)
class Data:
    """What heads learn from.

    Attributes:
        features: (N, F) float32.
        labels: (N,) int64, 0 to C - 1.
        classes: number C.
        weights: (C,) float32 of the classes in the loss of the labels; None: all alike.
    """

    features: Tensor
    labels: Tensor
    classes: int
    weights: Tensor | None = None


def make_data(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, balanced: bool
) -> Data:
    """Wrap arrays; with `balanced` a class weighs N / (C n_c), as in scikit-learn."""
    weights = None
    if balanced:
        counts = np.bincount(labels, minlength=classes)
        weights = torch.from_numpy((len(labels) / (classes * counts)).astype(np.float32))
    return Data(torch.from_numpy(features), torch.from_numpy(labels), classes, weights)


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor, recipe: Recipe, weights: Tensor | None = None
) -> Tensor:
    """Weigh the teacher's answers against the labels: alpha T^2 KL + (1 - alpha) cross-entropy.

    Args:
        logits: (B, C) float32 of the student.
        labels: (B,) int64.
        teacher: (B, C) float32 logits.
        weights: (C,) float32 of the classes in the cross-entropy.
    """
    soft = kd_loss(logits, teacher, recipe.temperature)
    return recipe.alpha * soft + (1 - recipe.alpha) * F.cross_entropy(logits, labels, weights)


def fit_head(
    shape: HeadShape, data: Data, recipe: Recipe, seed: int, teacher: nn.Module | None = None
) -> nn.Sequential:
    """Train a head with Adam.

    Args:
        shape: its hidden layers.
        seed: of the weights, the order and the dropout; the global generators stay as they are.
        teacher: (B, F) -> (B, C) logits, in evaluation mode; None: from the labels alone.

    Returns:
        the head, in evaluation mode.

    Raises:
        TkError: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = make_head(shape, data.features.shape[1], data.classes).train()
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(head.parameters(), lr=recipe.lr)
        answers = _answers(teacher, data.features)
        for _ in range(recipe.epochs):
            shuffled = torch.randperm(len(data.labels), generator=order)
            for rows in torch.split(shuffled, recipe.batch_size):
                logits = head(data.features[rows])
                if answers is None:
                    loss = F.cross_entropy(logits, data.labels[rows], data.weights)
                else:
                    loss = distillation_loss(
                        logits, data.labels[rows], answers[rows], recipe, data.weights
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if not torch.isfinite(loss):
                raise TkError(
                    f"the loss of a head is {loss.item()}",
                    fix="a smaller --teacher-lr or --distill-lr",
                )
    return head.eval()


def _answers(teacher: nn.Module | None, features: Tensor) -> Tensor | None:
    """(N, C) logits of the teacher: it is frozen and without dropout, so they never change."""
    if teacher is None:
        return None
    with torch.no_grad():
        found: Tensor = teacher(features)
    return found


def fit_probe(data: Data) -> tuple[nn.Sequential, bool]:
    """Fit scikit-learn's logistic regression and make a linear head of it.

    Returns:
        the head in evaluation mode, with F C + C parameters, and whether the fit converged.
    """
    labels = data.labels.numpy()
    balanced = None if data.weights is None else "balanced"
    model = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight=balanced)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(data.features.double().numpy(), labels)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    matrix, bias = model.coef_, model.intercept_
    if data.classes == 2:  # one row there, for the second class against the first
        matrix = np.stack([np.zeros_like(matrix[0]), matrix[0]])
        bias = np.asarray([0.0, bias[0]])
    head = make_head(LINEAR, data.features.shape[1], data.classes)
    layer = head[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix))
        layer.bias.copy_(torch.from_numpy(bias))
    return head.eval(), converged
