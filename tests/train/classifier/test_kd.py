"""Distillation of logits against the closed form for two classes, and its limit for large T."""

from __future__ import annotations

import math

import pytest
import torch

from tk.train.classifier.kd import kd_loss


def test_kd_loss__two_classes_in_closed_form() -> None:
    # Logits (0, x): probability of the second class is the logistic function of x / T.
    temperature, own, wanted = 3.0, -1.2, 2.1
    p, q = (1 / (1 + math.exp(-x / temperature)) for x in (wanted, own))
    expected = temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    student, teacher = torch.tensor([[0.0, own]] * 5), torch.tensor([[0.0, wanted]] * 5)
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(kd_loss(student[:1], teacher[:1], temperature)) == pytest.approx(
        expected, rel=1e-5
    )


def test_kd_loss__equal_predictions_cost_nothing() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    # A constant added to all logits of a row changes no probability.
    assert float(kd_loss(logits, logits + 7, 3.0)) == pytest.approx(0, abs=1e-6)


def test_kd_loss__gradient_is_the_difference_of_softened_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    kd_loss(student, teacher, 3.0).backward()  # type: ignore[no-untyped-call]
    # d/ds of T^2 KL / B is T (softmax(s / T) - softmax(t / T)) / B: equation 2 of the paper.
    wanted = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)).detach() / 6
    assert student.grad is not None
    assert torch.allclose(student.grad, wanted, atol=1e-12)
    assert teacher.grad is None


def test_kd_loss__large_temperature_is_half_the_squared_distance_of_centred_logits() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    difference = (student - student.mean(1, keepdim=True)) - (
        teacher - teacher.mean(1, keepdim=True)
    )
    wanted = difference.square().sum(1).mean() / (2 * 4)  # equation 4 of the paper
    assert float(kd_loss(student, teacher, 1e4)) == pytest.approx(float(wanted), rel=1e-3)
