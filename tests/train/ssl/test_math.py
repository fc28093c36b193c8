"""Losses, head, centering, masks and schedules against lightly 1.6 and definitions."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from torch import Tensor

from tk.train.ssl.block_masks import block_masks
from tk.train.ssl.centering.mean import MeanCentering
from tk.train.ssl.centering.none import NoCentering
from tk.train.ssl.centering.sinkhorn import SinkhornCentering
from tk.train.ssl.dino_loss import dino_loss
from tk.train.ssl.heads import ProjectionHead
from tk.train.ssl.ibot_loss import ibot_patch_loss
from tk.train.ssl.koleo import koleo_loss
from tk.train.ssl.schedules import cosine_schedule, linear_warmup


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients_agree(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def test_dino_loss__equals_lightly_over_steps_of_the_centre() -> None:
    oracle = DINOLoss(output_dim=32, teacher_temp=0.05, student_temp=0.1)
    centering = MeanCentering(32)
    for step in range(4):
        answers = normal(step, 2, 8, 32)
        guesses = normal(10 + step, 6, 8, 32).requires_grad_()
        theirs = guesses.detach().clone().requires_grad_()
        targets = centering(answers.flatten(0, 1), 0.05).unflatten(0, (2, 8))
        loss = dino_loss(guesses, targets, 0.1)
        centering.update(answers.flatten(0, 1))
        expected = oracle(list(answers), list(theirs), teacher_temp=0.05)
        assert abs(loss.item() - expected.item()) < 5e-6, step
        loss.backward()  # type: ignore[no-untyped-call]
        expected.backward()
        assert guesses.grad is not None and theirs.grad is not None
        assert gradients_agree(guesses.grad, theirs.grad)
    assert torch.allclose(centering.center.flatten(), oracle.center.flatten(), atol=1e-6)


def test_ibot_patch_loss__equals_lightly() -> None:
    oracle = IBOTPatchLoss(output_dim=32, teacher_temp=0.05, student_temp=0.1)
    centering = MeanCentering(32)
    rng = np.random.default_rng(0)
    for step in range(3):
        masks = torch.from_numpy(
            block_masks(rng, (4, 4), 6, probability=0.7, ratio=(0.3, 0.6), aspect=0.3)
        )
        count = int(masks.sum())
        answers, guesses = normal(step, count, 32), normal(9 + step, count, 32).requires_grad_()
        theirs = guesses.detach().clone().requires_grad_()
        weights = (1.0 / masks.flatten(1).sum(1, keepdim=True).clamp(min=1)).expand(6, 16)
        chosen = weights[masks.flatten(1)]
        loss = ibot_patch_loss(guesses, centering(answers, 0.05), chosen, 0.1, 6)
        centering.update(answers)
        expected = oracle(answers, theirs, masks)
        assert abs(loss.item() - expected.item()) < 5e-6
        loss.backward()  # type: ignore[no-untyped-call]
        expected.backward()
        assert guesses.grad is not None and theirs.grad is not None
        assert gradients_agree(guesses.grad, theirs.grad)


def test_ibot_patch_loss__nothing_masked() -> None:
    guesses = torch.zeros(0, 8, requires_grad=True)
    loss = ibot_patch_loss(guesses, torch.zeros(0, 8), torch.zeros(0), 0.1, 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == 0.0 and guesses.grad is not None


def test_koleo_loss__equals_lightly_and_stays_finite() -> None:
    features = normal(0, 16, 8).requires_grad_()
    theirs = features.detach().clone().requires_grad_()
    loss, expected = koleo_loss(features), KoLeoLoss()(theirs)
    assert abs(loss.item() - expected.item()) < 5e-6
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()
    assert features.grad is not None and theirs.grad is not None
    assert gradients_agree(features.grad, theirs.grad)
    same = torch.ones(4, 8, requires_grad=True)
    koleo_loss(same).backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None and bool(same.grad.isfinite().all())
    assert float(koleo_loss(torch.ones(1, 8))) == 0.0


def published_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Algorithm of SwAV and DINOv2, in float64, where it does not overflow here."""
    q = (logits.double() / temperature).exp().T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True) * q.shape[0]
        q /= q.sum(dim=0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T.float()


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn__equals_the_published_algorithm(iterations: int) -> None:
    logits = normal(0, 24, 16)
    found = SinkhornCentering(iterations)(logits, 0.07)
    assert torch.allclose(found, published_sinkhorn(logits, 0.07, iterations), atol=2e-6)


def test_sinkhorn__large_logits_and_balance() -> None:
    huge = SinkhornCentering()(normal(0, 24, 16) * 1e4, 0.04)
    assert bool(huge.isfinite().all()) and torch.allclose(huge.sum(dim=1), torch.ones(24))
    balanced = SinkhornCentering(50)(normal(1, 64, 16), 0.5).sum(dim=0)
    assert torch.allclose(balanced, torch.full((16,), 4.0), atol=1e-2)
    assert SinkhornCentering()(torch.zeros(0, 8), 0.1).shape == (0, 8)


def test_centering__mean_of_several_updates() -> None:
    centering, logits = MeanCentering(3, momentum=0.9), normal(0, 5, 3)
    for _ in range(2):
        centering.update(logits)
    assert torch.allclose(centering.center[0], 0.19 * logits.mean(dim=0), atol=1e-6)
    centering.update(torch.zeros(0, 3))  # no masked patch in this batch
    assert torch.allclose(centering.center[0], 0.19 * logits.mean(dim=0), atol=1e-6)
    assert torch.allclose(NoCentering()(logits, 0.5), (logits / 0.5).softmax(dim=1))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_head__unit_prototypes_survive_copies_and_state(batch_norm: bool) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, 20, hidden_dim=8, bottleneck_dim=5, batch_norm=batch_norm)
    lengths = head.last_layer.weight.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(20), atol=1e-6)
    other = copy.deepcopy(head)
    fresh = ProjectionHead(6, 20, hidden_dim=8, bottleneck_dim=5, batch_norm=batch_norm)
    fresh.load_state_dict(head.state_dict())
    features = normal(1, 7, 6)
    assert torch.equal(head(features), other(features))
    assert torch.equal(head(features), fresh(features))
    assert float(head(features).abs().max()) <= 1.0 + 1e-6
    frozen = [n for n, p in head.last_layer.named_parameters() if not p.requires_grad]
    assert frozen == ["parametrizations.weight.original0"]


def published_schedule(base: float, final: float, steps: int, warmup: int, start: float) -> Any:
    """`cosine_scheduler` of the code of DINO."""
    rise = np.linspace(start, base, warmup) if warmup else np.array([])
    iters = np.arange(steps - warmup)
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * iters / len(iters)))
    return np.concatenate((rise, fall))


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_schedule__equals_the_published_one(warmup: int) -> None:
    expected = published_schedule(0.7, 0.1, 50, warmup, 0.2 if warmup > 1 else 0.7)
    found = [
        cosine_schedule(step, 50, 0.7, 0.1, warmup=warmup, warmup_start=0.2) for step in range(50)
    ]
    assert np.abs(np.asarray(found) - expected).max() < 1e-12
    assert cosine_schedule(80, 50, 0.7, 0.1) == 0.1


def test_linear_warmup__equals_linspace() -> None:
    expected = np.concatenate((np.linspace(0.04, 0.07, 30), np.full(5, 0.07)))
    found = [linear_warmup(step, 30, 0.04, 0.07) for step in range(35)]
    assert np.abs(np.asarray(found) - expected).max() < 1e-12
    assert linear_warmup(0, 0, 0.04, 0.07) == 0.07


def test_block_masks__shares_and_blocks() -> None:
    rng = np.random.default_rng(0)
    masks = block_masks(rng, (14, 14), 400, probability=0.5, ratio=(0.1, 0.5), aspect=0.3)
    shares = masks.reshape(400, -1).mean(axis=1)
    assert 0.4 < (shares > 0).mean() < 0.6
    hidden = shares[shares > 0]
    assert hidden.max() <= 0.5 and 0.25 < hidden.mean() < 0.32
    # Patches of blocks have hidden neighbours far more often than scattered ones would.
    beside = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert beside > 0.7
    again = block_masks(
        np.random.default_rng(0), (14, 14), 400, probability=0.5, ratio=(0.1, 0.5), aspect=0.3
    )
    assert (again == masks).all()


def test_block_masks__the_smallest_grid() -> None:
    rng = np.random.default_rng(0)
    masks = block_masks(rng, (1, 1), 20, probability=1.0, ratio=(0.1, 1.0), aspect=0.3)
    assert masks.shape == (20, 1, 1) and not math.isnan(masks.mean())


def test_head__survives_export_to_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, 20, hidden_dim=8, bottleneck_dim=5, norm_last_layer=False).eval()
    with torch.no_grad():
        head.last_layer.get_parameter("parametrizations.weight.original0").uniform_(0.5, 2.0)
    features = normal(1, 7, 6)
    path = tmp_path / "head.onnx"
    torch.onnx.export(head, (features,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {session.get_inputs()[0].name: features.numpy()})[0]
    assert np.abs(found - head(features).detach().numpy()).max() < 1e-6
