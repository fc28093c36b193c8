"""Heads: the probe is scikit-learn's, the distillation is the published one, seeds decide all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from tk.runtime.errors import TkError
from tk.train.classifier.heads import STUDENT, TEACHER, count_parameters
from tk.train.distill.fit import Data, Recipe, distillation_loss, fit_head, fit_probe, make_data


def blobs(classes: int, count: int = 60) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points around one centre for every class, the first class three times as many."""
    rng = np.random.default_rng(classes)
    labels = np.concatenate([np.zeros(2 * count, int), np.arange(count * classes) % classes])
    centres = rng.normal(size=(classes, 8))
    points = centres[labels] + rng.normal(size=(len(labels), 8))
    return points.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_probe__says_what_logistic_regression_says(classes: int, balanced: bool) -> None:
    features, labels = blobs(classes)
    model = LogisticRegression(max_iter=1000, class_weight="balanced" if balanced else None)
    model.fit(features.astype(np.float64), labels)
    head, converged = fit_probe(make_data(features, labels, classes, balanced))
    assert converged and count_parameters(head) == 8 * classes + classes
    said = head(torch.from_numpy(features)).softmax(1).detach().numpy()
    assert np.allclose(said, model.predict_proba(features), atol=1e-5)


def test_class_weights__as_scikit_learn_balances() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    features, labels = blobs(3)
    weights = make_data(features, labels, 3, True).weights
    assert weights is not None
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights.numpy() == pytest.approx(expected)


def logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 4, generator=generator) * 2
    return student, teacher, torch.randint(0, 4, (16,), generator=generator)


def test_distillation_loss__the_formula_of_the_seed() -> None:
    student, teacher, labels = logits()
    t = 3.0
    soft = F.softmax(teacher / t, 1) * (F.softmax(teacher / t, 1) / F.softmax(student / t, 1)).log()
    expected = 0.7 * t * t * soft.sum(1).mean() + 0.3 * F.cross_entropy(student, labels)
    found = distillation_loss(student, labels, teacher, Recipe(1, 0.1))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_distillation_loss__as_timm_computes_it() -> None:
    """timm's LogitDistillationTask on two networks that say fixed logits."""
    task_module = pytest.importorskip("timm.task", reason="timm has it since 1.0.23")
    student, teacher, labels = logits()

    class Says(nn.Module):
        def __init__(self, value: Tensor) -> None:
            super().__init__()
            self.value = nn.Parameter(value)
            self.num_classes, self.in_chans = 4, 3
            self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

        def forward(self, _: Tensor) -> Tensor:
            return self.value

    task: Any = task_module.LogitDistillationTask(
        Says(student),
        Says(teacher).requires_grad_(False),
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=0.7,
        task_loss_weight=0.3,
        temperature=3.0,
        verbose=False,
    )
    theirs = task(torch.zeros(16, 3, 8, 8), labels)["loss"]
    ours = distillation_loss(student, labels, teacher, Recipe(1, 0.1, temperature=3.0, alpha=0.7))
    assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-5)


def data(classes: int = 3, balanced: bool = False) -> Data:
    return make_data(*blobs(classes), classes, balanced)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_fit_head__the_seed_decides_and_nothing_outside_changes() -> None:
    recipe, points = Recipe(2, 1e-2), data()
    before = torch.get_rng_state()
    first = fit_head(TEACHER, points, recipe, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(first, fit_head(TEACHER, points, recipe, 1))
    assert not same(first, fit_head(TEACHER, points, recipe, 2))
    assert not first.training


def test_fit_head__alpha_0_is_the_control_without_a_teacher() -> None:
    """So the control differs from the distilled student by the teacher alone."""
    points = data()
    teacher = fit_head(TEACHER, points, Recipe(2, 1e-2), 0)
    control = fit_head(STUDENT, points, Recipe(3, 1e-2), 5)
    assert same(control, fit_head(STUDENT, points, Recipe(3, 1e-2, alpha=0), 5, teacher))
    assert not same(control, fit_head(STUDENT, points, Recipe(3, 1e-2), 5, teacher))


def test_fit_head__with_alpha_1_learns_the_teacher_and_no_label() -> None:
    points = data()
    teacher = fit_head(TEACHER, points, Recipe(15, 1e-2), 0)
    wrong = Data(points.features, (points.labels + 1) % 3, 3)
    student = fit_head(STUDENT, wrong, Recipe(30, 1e-2, alpha=1), 0, teacher)
    answers = [head(points.features).argmax(1) for head in (teacher, student)]
    assert float((answers[0] == answers[1]).float().mean()) > 0.95


def test_fit_head__balanced_helps_the_rare_class() -> None:
    features, labels = blobs(2, 30)
    keep = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:6]])
    features, labels = features[keep] * 0.4, labels[keep]
    recalls = []
    for balanced in (False, True):
        head = fit_head(STUDENT, make_data(features, labels, 2, balanced), Recipe(4, 1e-2), 0)
        said = head(torch.from_numpy(features)).argmax(1).numpy()
        recalls.append((said[labels == 1] == 1).mean())
    assert recalls[1] > recalls[0]


def test_fit_head__loss_that_is_not_finite() -> None:
    points = data()
    broken = Data(points.features.clone(), points.labels, 3)
    broken.features[0, 0] = torch.inf
    with pytest.raises(TkError, match="the loss of a head is"):
        fit_head(STUDENT, broken, Recipe(1, 1e-2, batch_size=1000), 0)
