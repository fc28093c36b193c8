from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tk.train.ssl.teacher import follow, make_teacher


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), weight_norm(nn.Linear(4, 2)))


def test_follow__is_the_moving_average_of_every_parameter() -> None:
    student, teacher = network(0), make_teacher(network(1))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    expected = {
        name: 0.9 * value + 0.1 * dict(student.named_parameters())[name].detach()
        for name, value in copy.deepcopy(teacher).named_parameters()
    }
    follow(teacher, student, 0.9)
    for name, value in teacher.named_parameters():
        assert torch.allclose(value, expected[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize(("momentum", "equal_to"), [(0.0, "student"), (1.0, "before")])
def test_follow__ends_of_the_range(momentum: float, equal_to: str) -> None:
    student, teacher = network(0), make_teacher(network(1))
    other = student if equal_to == "student" else copy.deepcopy(teacher)
    follow(teacher, student, momentum)
    pairs = zip(teacher.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_follow__takes_over_buffers() -> None:
    student, teacher = network(0), make_teacher(network(1))
    student.train()(torch.randn(8, 3))
    follow(teacher, student, 0.5)
    pairs = zip(teacher.buffers(), student.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(bool(buffer.any()) for buffer in teacher.buffers())


def test_follow__other_architecture() -> None:
    with pytest.raises(ValueError, match="different parameters"):
        follow(make_teacher(nn.Linear(2, 2)), nn.Linear(2, 2, bias=False), 0.5)
