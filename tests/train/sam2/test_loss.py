"""The loss against the training code of the `sam2` package, torchvision and closed forms."""

from __future__ import annotations

import importlib
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from tk.train.sam2.loss import (
    Predictions,
    Weights,
    dice_loss,
    drawn_regions,
    filled_boxes,
    focal_loss,
    measured_iou,
    sam2_loss,
)


def case(seed: int = 0, boxes: int = 5, absent: bool = True) -> tuple[Predictions, Tensor]:
    """Random predictions that take gradients, and binary masks, the last of them empty."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(boxes, 3, 16, 16, generator=random)
    iou = torch.rand(boxes, 3, generator=random)
    score = torch.randn(boxes, 1, generator=random)
    target = (torch.rand(boxes, 16, 16, generator=random) < 0.3).float()
    # A good mask among the three, each time another one.
    for row in range(boxes):
        logits[row, row % 3] += 4 * (2 * target[row] - 1)
    if absent:
        target[-1] = 0
    found = Predictions(logits, iou, score)
    for value in (logits, iou, score):
        value.requires_grad_()
    return found, target


def published(monkeypatch: pytest.MonkeyPatch, weights: dict[str, float]) -> Any:
    """Loss module of the package with the settings of SAM 2.1's training."""
    pytest.importorskip("sam2")
    pytest.importorskip("training.utils.distributed")
    # Its trainer wants packages that are not here, for the sake of one name.
    trainer: Any = ModuleType("training.trainer")
    trainer.CORE_LOSS_KEY = "core_loss"
    monkeypatch.setitem(sys.modules, "training.trainer", trainer)
    module = importlib.import_module("training.loss_fns")
    return module.MultiStepMultiMasksAndIous(
        weights, supervise_all_iou=True, iou_use_l1_loss=True, pred_obj_scores=True
    )


@pytest.mark.parametrize("absent", [False, True])
def test_loss__equals_the_packages_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, absent: bool
) -> None:
    settings = {"loss_mask": 20.0, "loss_dice": 1.0, "loss_iou": 1.0, "loss_class": 1.0}
    theirs = published(monkeypatch, settings)
    found, target = case(absent=absent)
    other, _ = case(absent=absent)
    outputs = {
        "multistep_pred_multimasks_high_res": [other.logits],
        "multistep_pred_ious": [other.iou],
        "multistep_object_score_logits": [other.score],
    }
    expected = theirs([outputs], target[None])
    own = sam2_loss(found, target, Weights())
    names = {"focal": "loss_mask", "dice": "loss_dice", "iou": "loss_iou", "score": "loss_class"}
    for name, their_name in names.items():
        assert float(own[name].detach()) == pytest.approx(
            float(expected[their_name].detach()), rel=1e-5
        ), name
        assert float(own[name].detach()) > 0
    assert float(own["loss"].detach()) == pytest.approx(
        float(expected["core_loss"].detach()), rel=1e-5
    )
    torch.autograd.backward(own["loss"])
    torch.autograd.backward(expected["core_loss"])
    for mine, their in ((found.logits, other.logits), (found.iou, other.iou)):
        assert mine.grad is not None and their.grad is not None
        assert float(mine.grad.abs().max()) > 0
        torch.testing.assert_close(mine.grad, their.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.score.grad, other.score.grad)


def test_focal__equals_torchvisions() -> None:
    found, target = case()
    wide = target[:, None].expand_as(found.logits)
    expected = sigmoid_focal_loss(found.logits, wide, 0.25, 2.0, reduction="none").mean((2, 3))
    torch.testing.assert_close(focal_loss(found.logits, target[:, None], Weights()), expected)


def test_focal__without_balance_is_half_the_cross_entropy() -> None:
    """What random weights are trained with, at twice the weight."""
    found, target = case()
    wide = target[:, None].expand_as(found.logits)
    expected = binary_cross_entropy_with_logits(found.logits, wide, reduction="none").mean((2, 3))
    even = focal_loss(found.logits, target[:, None], Weights(alpha=0.5, gamma=0))
    torch.testing.assert_close(2 * even, expected)
    (own,) = torch.autograd.grad(2 * even.sum(), found.logits)
    torch.testing.assert_close(own, torch.autograd.grad(expected.sum(), found.logits)[0])
    total = sam2_loss(found, target, Weights(alpha=0.5, gamma=0, dice=0, iou=0, score=0))
    assert float(total["focal"].detach()) != float(
        sam2_loss(found, target, Weights(dice=0, iou=0, score=0))["focal"].detach()
    )


def test_terms__closed_forms() -> None:
    logits = torch.zeros(1, 1, 4, 4)
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2, :] = 1
    # Every pixel at one half: entropy log 2, weight 1/4, balance 1/4 and 3/4 by halves.
    assert float(focal_loss(logits, target, Weights())) == pytest.approx(math.log(2) / 4 * 0.5)
    assert float(dice_loss(logits, target)) == pytest.approx(1 - (2 * 4 + 1) / (8 + 8 + 1))
    perfect = torch.where(target > 0, 30.0, -30.0)
    assert float(focal_loss(perfect, target, Weights())) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(perfect, target)) == pytest.approx(0, abs=1e-6)
    assert float(measured_iou(perfect, target)) == 1
    assert float(measured_iou(perfect.roll(1, dims=2), target)) == pytest.approx(4 / 12)
    assert float(measured_iou(-perfect, target)) == 0
    # Covered by half counts as covered, by less does not.
    shares = torch.tensor([0.5, 0.49, 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert float(measured_iou(torch.ones(1, 1, 2, 2), shares)) == 0.5


def test_loss__only_the_best_mask_learns_unless_spread() -> None:
    found, target = case(absent=False)
    torch.autograd.backward(sam2_loss(found, target, Weights(iou=0, score=0))["loss"])
    assert found.logits.grad is not None
    moved = found.logits.grad.abs().amax(dim=(2, 3)) > 0
    assert moved.nonzero().tolist() == [[row, row % 3] for row in range(5)]
    both, _ = case(absent=False)
    spread = sam2_loss(both, target, Weights(), spread=1.0)
    expected = focal_loss(both.logits, target[:, None], Weights()).mean()
    assert float(spread["focal"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.autograd.backward(spread["loss"])
    assert both.logits.grad is not None and (both.logits.grad.abs().amax(dim=(2, 3)) > 0).all()


def test_loss__overlap_is_that_of_the_mask_of_highest_predicted_iou() -> None:
    found, target = case(absent=False)
    rows = torch.arange(5)
    chosen = found.iou.argmax(dim=1)
    expected = measured_iou(found.logits, target[:, None])[rows, chosen].mean()
    assert float(sam2_loss(found, target, Weights())["overlap"].detach()) == pytest.approx(
        float(expected.detach())
    )


def test_filled_boxes__cover_what_a_fine_drawing_covers() -> None:
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(4, 2, 2, generator=random).sort(dim=1).values * 128
    boxes = corners.flatten(1).round()
    found = filled_boxes(boxes, 128, 32)
    for box, share in zip(boxes.long().tolist(), found, strict=True):
        drawn = torch.zeros(128, 128)
        drawn[box[1] : box[3], box[0] : box[2]] = 1
        expected = torch.nn.functional.avg_pool2d(drawn[None, None], 4)[0, 0]
        torch.testing.assert_close(share, expected)


def test_loss__of_a_region_is_the_loss_of_its_pixels_cut_out() -> None:
    found, target = case(absent=False)
    region = torch.zeros(5, 16, 16)
    region[:, 3:11, 5:15] = 1
    own = sam2_loss(found, target, Weights(), 0.5, region)
    cut = Predictions(found.logits[..., 3:11, 5:15], found.iou, found.score)
    expected = sam2_loss(cut, target[:, 3:11, 5:15], Weights(), 0.5)
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert float(own[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
    (gradient,) = torch.autograd.grad(own["loss"], found.logits)
    inside = gradient[..., 3:11, 5:15]
    assert inside.abs().sum() > 0
    assert gradient.abs().sum() == pytest.approx(float(inside.abs().sum()), rel=1e-6)

    # Of one mask the best may change where all pixels count; the mean of all three is no matter.
    for name in ("focal", "dice"):
        both, here, everywhere = (
            sam2_loss(found, target, Weights(), 1.0, *more)[name].detach().item()
            for more in ((region, True), (region,), ())
        )
        assert both == pytest.approx((here + everywhere) / 2, rel=1e-6), name
        assert here != everywhere, name


def test_sam2_loss__the_last_mask_fills_the_box() -> None:
    target = torch.zeros(2, 16, 16)
    target[:, 5:9, 4:7] = 1
    filled = torch.zeros(2, 16, 16)
    filled[:, 3:12, 2:13] = 1
    logits = 40 * torch.stack([target, target, filled], dim=1) - 20
    found = Predictions(logits, torch.tensor([[1.0, 1, 12 / 99]] * 2), torch.full((2, 1), 20.0))
    own = sam2_loss(found, target, Weights(), 1.0, filled, True, filled)
    for name in ("focal", "dice", "iou"):
        assert float(own[name]) == pytest.approx(0, abs=1e-5), name
    assert float(own["overlap"]) == 1
    assert float(sam2_loss(found, target, Weights(), 1.0)["dice"]) > 0.2


def test_drawn_regions__hold_what_the_runtime_draws() -> None:
    """A margin of a tenth of the longer side, and cells that are only touched."""
    boxes = torch.tensor([[16.0, 16, 48, 24], [0, 0, 8, 8], [58, 60, 64, 64]])
    found = drawn_regions(boxes, 64, 16)  # cells of 4 pixels
    # 12.8..51.2 x 12.8..27.2; -0.8..8.8; 57.4.. x 59.4..
    expected = torch.zeros(3, 16, 16)
    expected[0, 3:7, 3:13] = 1
    expected[1, :3, :3] = 1
    expected[2, 14:, 14:] = 1
    assert torch.equal(found, expected)
