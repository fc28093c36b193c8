from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tk.train.embedder.arcface import ArcFace
from tk.train.embedder.cosface import CosFace
from tk.train.embedder.cosine import CosineHead

CLASSES, DIM, SCALE, MARGIN = 7, 16, 30.0, 0.30


def closed_form(kind: type[CosineHead], x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
    """Logits in float64, written with angles: shares no arithmetic with the code under test."""
    theta = torch.acos(F.normalize(x.double()) @ F.normalize(w.double()).T)
    if kind is ArcFace:
        harder = torch.where(
            theta < math.pi - MARGIN,
            torch.cos(theta + MARGIN),
            torch.cos(theta) - MARGIN * math.sin(MARGIN),
        )
    else:
        harder = torch.cos(theta) - MARGIN
    true = torch.arange(len(w))[None] == labels[:, None]
    return SCALE * torch.where(true, harder, torch.cos(theta))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Random vectors, and for every class one at each of 40 angles from its centre."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(CLASSES, DIM, generator=generator)
    other = torch.randn(CLASSES, DIM, generator=generator)
    axis = F.normalize(w)
    normal = F.normalize(other - (other * axis).sum(1, keepdim=True) * axis)
    angles = torch.linspace(0.02, math.pi - 0.02, 40)[:, None, None]
    near = ((torch.cos(angles) * axis + torch.sin(angles) * normal) * 3).reshape(-1, DIM)
    x = torch.cat([torch.randn(200, DIM, generator=generator), near])
    labels = torch.cat([torch.arange(200) % CLASSES, torch.arange(len(near)) % CLASSES])
    return x, w, labels


def head(kind: type[CosineHead], w: Tensor) -> CosineHead:
    made = kind(DIM, CLASSES, scale=SCALE, margin=MARGIN)
    with torch.no_grad():
        made.weight.copy_(w)
    return made


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
def test_margin__equals_closed_form(kind: type[CosineHead]) -> None:
    x, w, labels = inputs()
    made, x32 = head(kind, w), x.clone().requires_grad_()
    logits = made(x32, labels)
    F.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    expected = closed_form(kind, x64, w64, labels)
    F.cross_entropy(expected, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.double(), expected, atol=2e-4, rtol=0)
    for found, wanted in ((x32.grad, x64.grad), (made.weight.grad, w64.grad)):
        assert found is not None and wanted is not None
        torch.testing.assert_close(found.double(), wanted, atol=2e-3, rtol=1e-3)


def test_arcface__is_not_cosface() -> None:
    x, w, labels = inputs()
    assert not torch.allclose(head(ArcFace, w)(x, labels), head(CosFace, w)(x, labels), atol=0.1)


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_margin__float32_under_autocast(kind: type[CosineHead], precision: torch.dtype) -> None:
    x, w, labels = inputs()
    made = head(kind, w)
    plain = made(x, labels)
    with torch.autocast("cpu", precision):
        inside, bare = made(x, labels), made.logits(x)
        half = made(x.to(precision), labels)
    assert inside.dtype == bare.dtype == half.dtype == made.weight.dtype == torch.float32
    assert torch.equal(inside, plain)
    assert torch.equal(bare, made.logits(x))


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_margin__finite_at_the_poles(kind: type[CosineHead], sign: float) -> None:
    _, w, _ = inputs()
    x = (sign * w).clone().requires_grad_()
    made, labels = head(kind, w), torch.arange(CLASSES)
    logits = made(x, labels)
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    if kind is CosFace:
        pole = sign - MARGIN
    else:
        pole = math.cos(MARGIN) if sign > 0 else -1 - MARGIN * math.sin(MARGIN)
    assert logits.diagonal().detach() / SCALE == pytest.approx(pole, abs=5e-4)
    for grad in (x.grad, made.weight.grad):
        assert grad is not None and bool(torch.isfinite(grad).all())


def test_logits__carry_no_margin() -> None:
    x, w, _ = inputs()
    expected = SCALE * F.cosine_similarity(x.double()[:, None], w.double()[None], dim=2)
    found = head(ArcFace, w).logits(x).double()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
