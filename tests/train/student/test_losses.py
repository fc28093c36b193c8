"""Losses of a student against timm's distillation tasks and against themselves in parts."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.task import FeatureDistillationTask, LogitDistillationTask
from torch import nn
from torch.nn import functional as F

from tk.train.classifier.kd import kd_loss
from tk.train.student.feature_loss import FeatureDistillation
from tk.train.student.label_loss import UNLABELLED, LabelLoss

PICTURES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher of timm, features of 64 and 64 or other lengths, 3 classes."""
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=3)
    teacher = timm.create_model("test_vit", num_classes=3, img_size=32)
    return student.eval(), teacher.eval()


def features(model: nn.Module) -> torch.Tensor:
    return model.forward_head(model.forward_features(PICTURES), pre_logits=True)  # type: ignore[operator, no-any-return]


def seen_by_teacher(task: LogitDistillationTask | FeatureDistillationTask) -> torch.Tensor:
    """The pictures as timm hands them to the teacher."""
    buffers = dict(task.named_buffers())
    return task.teacher.normalize_input(PICTURES, buffers["student_mean"], buffers["student_std"])


def test_kd_loss__is_timms(networks: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = networks
    task = LogitDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), temperature=3.0, verbose=False
    )
    task.trainable_module.eval()
    found = task(PICTURES, TARGETS)
    wanted_input = seen_by_teacher(task)
    own = kd_loss(student(PICTURES), teacher(wanted_input), 3.0)
    assert float(own.detach()) == pytest.approx(float(found["kd_loss"].detach()), rel=1e-5)


def test_feature_distillation__is_timms(networks: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = networks
    sizes = features(student).shape[1], features(teacher).shape[1]
    task = FeatureDistillationTask(student, teacher, nn.CrossEntropyLoss(), verbose=False)
    task.trainable_module.eval()
    own = FeatureDistillation(*sizes)
    if task.trainable_module.projection is None:  # of equal length: timm compares them as they are
        nn.init.eye_(own.projection.weight)
        nn.init.zeros_(own.projection.bias)
    else:
        own.projection.load_state_dict(task.trainable_module.projection.state_dict())
    seen = seen_by_teacher(task)
    with torch.no_grad():
        wanted = teacher.forward_head(teacher.forward_features(seen), pre_logits=True)  # type: ignore[operator]
    loss = own(features(student), wanted)
    assert float(loss.detach()) == pytest.approx(
        float(task(PICTURES, TARGETS)["kd_loss"].detach()), rel=1e-5
    )


def test_feature_distillation__nothing_flows_into_the_teacher() -> None:
    loss = FeatureDistillation(4, 6)
    student, teacher = torch.ones(2, 4, requires_grad=True), torch.ones(2, 6, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None
    assert loss.projection.weight.grad is not None


def test_label_loss__all_labelled_is_the_cross_entropy() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss = LabelLoss(TARGETS.tolist(), 3, smoothing=0.1)
    wanted = F.cross_entropy(logits, TARGETS, label_smoothing=0.1)
    assert float(loss(logits, TARGETS)) == pytest.approx(float(wanted), rel=1e-6)


def test_label_loss__parts_of_a_batch_add_up_to_it() -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, UNLABELLED, 2, 1, UNLABELLED, UNLABELLED, 1, UNLABELLED])
    loss = LabelLoss(labels.tolist(), 3)
    whole = float(loss(logits, labels))
    halves = [float(loss(logits[i::2], labels[i::2])) for i in range(2)]
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-6)
    known = labels != UNLABELLED
    assert whole == pytest.approx(float(F.cross_entropy(logits[known], labels[known])), rel=1e-6)


def test_label_loss__without_a_label_is_zero_and_so_is_its_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = LabelLoss([0, 1, 2, UNLABELLED], 3)(logits, torch.tensor([UNLABELLED] * 2))
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()


def test_label_loss__balanced_gives_every_class_the_same_say() -> None:
    labels = [0] * 6 + [1] * 2
    loss = LabelLoss(labels, 2, balance=True)
    assert loss.weight.tolist() == pytest.approx([8 / 12, 2])
    assert 6 * float(loss.weight[0]) == pytest.approx(2 * float(loss.weight[1]))
    # The mean weight of a sample is 1: the loss keeps its scale.
    assert float(loss.weight[torch.tensor(labels)].mean()) == pytest.approx(1)
