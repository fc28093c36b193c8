from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor
from torch.nn import functional as F

from tk.train.embedder.arcface import ArcFace
from tk.train.embedder.cosface import CosFace
from tk.train.embedder.cosine import CosineHead

CLASSES, DIM, SCALE, MARGIN = 7, 16, 30.0, 0.30
heads = pytest.mark.parametrize("kind", [ArcFace, CosFace])
centres = pytest.mark.parametrize("k", [1, 3])


def closed_form(kind: type[CosineHead], x: Tensor, w: Tensor, labels: Tensor, k: int) -> Tensor:
    """Logits in float64, written with angles: shares no arithmetic with the code under test."""
    angles = torch.acos(F.normalize(x.double()) @ F.normalize(w.double()).T)
    theta = torch.stack([angles[:, i::k] for i in range(k)]).amin(dim=0)
    if kind is ArcFace:
        harder = torch.where(
            theta < math.pi - MARGIN,
            torch.cos(theta + MARGIN),
            torch.cos(theta) - MARGIN * math.sin(MARGIN),
        )
    else:
        harder = torch.cos(theta) - MARGIN
    true = torch.arange(len(w) // k)[None] == labels[:, None]
    return SCALE * torch.where(true, harder, torch.cos(theta))


def inputs(k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Random vectors, and for every class one at each of 40 angles from its centre.

    Sub-centres lie close together, so that crops opposite to all of them (theta > pi - m) exist.
    """
    generator = torch.Generator().manual_seed(0)
    axis = F.normalize(torch.randn(CLASSES, DIM, generator=generator))
    other = torch.randn(CLASSES, DIM, generator=generator)
    normal = F.normalize(other - (other * axis).sum(1, keepdim=True) * axis)
    angles = torch.linspace(0.02, math.pi - 0.02, 40)[:, None, None]
    near = ((torch.cos(angles) * axis + torch.sin(angles) * normal) * 3).reshape(-1, DIM)
    x = torch.cat([torch.randn(200, DIM, generator=generator), near])
    labels = torch.cat([torch.arange(200) % CLASSES, torch.arange(len(near)) % CLASSES])
    w = axis.repeat_interleave(k, dim=0)
    w = 4 * (w if k == 1 else w + 0.02 * torch.randn(w.shape, generator=generator))
    return x, w, labels


def head(kind: type[CosineHead], w: Tensor, k: int = 1) -> CosineHead:
    made = kind(w.shape[1], len(w) // k, scale=SCALE, margin=MARGIN, sub_centers=k)
    with torch.no_grad():
        made.weight.copy_(w)
    return made


def slopes(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def assert_near(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], atol: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=atol, rtol=1e-3)


@heads
@centres
def test_margin__equals_closed_form(kind: type[CosineHead], k: int) -> None:
    x, w, labels = inputs(k)
    made, x32 = head(kind, w, k), x.clone().requires_grad_()
    logits = made(x32, labels)
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    expected = closed_form(kind, x64, w64, labels, k)
    torch.testing.assert_close(logits.double(), expected, atol=2e-4, rtol=0)
    assert_near(
        slopes(F.cross_entropy(logits, labels), x32, made.weight),
        slopes(F.cross_entropy(expected, labels), x64, w64),
        atol=1e-6,
    )


@heads
@centres
def test_inputs__reach_both_branches(kind: type[CosineHead], k: int) -> None:
    x, w, labels = inputs(k)
    own = head(kind, w, k).cosines(x).gather(1, labels[:, None])
    assert int((own < -math.cos(MARGIN)).sum()) >= 10 <= int((own > math.cos(MARGIN)).sum())


# The library agrees also beyond theta = pi - m: it has the same cos(theta) - m sin(m) there. It
# differs at theta = 0 and pi exactly, where its acos has no finite slope; `inputs` keeps 0.02 away.
@pytest.mark.parametrize(
    ("kind", "k", "name"),
    [
        (ArcFace, 1, "ArcFaceLoss"),
        (CosFace, 1, "CosFaceLoss"),
        (ArcFace, 3, "SubCenterArcFaceLoss"),
    ],
)
def test_margin__equals_metric_learning_library_away_from_poles(
    kind: type[CosineHead], k: int, name: str
) -> None:
    x, w, labels = inputs(k)
    margin = math.degrees(MARGIN) if kind is ArcFace else MARGIN
    more = {"sub_centers": k} if k > 1 else {}
    oracle = getattr(losses, name)(
        num_classes=CLASSES, embedding_size=DIM, margin=margin, scale=SCALE, **more
    )
    oracle.W.data = w.double().T.contiguous()
    x64, x32 = x.double().requires_grad_(), x.clone().requires_grad_()
    expected = oracle(x64, labels)
    made = head(kind, w, k)
    found = F.cross_entropy(made(x32, labels), labels)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    x_slope, w_slope = slopes(expected, x64, oracle.W)
    assert_near(slopes(found, x32, made.weight), (x_slope, w_slope.T), atol=1e-6)


def test_arcface__is_not_cosface() -> None:
    x, w, labels = inputs()
    assert not torch.allclose(head(ArcFace, w)(x, labels), head(CosFace, w)(x, labels), atol=0.1)


@heads
@centres
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_margin__float32_whatever_the_precision_around(
    kind: type[CosineHead], k: int, precision: torch.dtype, autocast: bool
) -> None:
    x, w, labels = inputs(k)
    made = head(kind, w, k)
    rounded = x.to(precision)
    plain, bare = made(rounded.float(), labels), made.logits(rounded.float())
    with torch.autocast("cpu", precision, enabled=autocast):
        for same in (rounded, rounded.float()):
            assert torch.equal(made(same, labels), plain)
            assert torch.equal(made.logits(same), bare)
        assert torch.equal(made(x, labels), head(kind, w, k)(x, labels))
    assert plain.dtype == bare.dtype == torch.float32


@heads
@centres
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_margin__weights_stay_float32_over_steps(
    kind: type[CosineHead], k: int, precision: torch.dtype
) -> None:
    x, w, labels = inputs(k)
    made, net = head(kind, w, k), torch.nn.Linear(DIM, DIM)
    optimizer = torch.optim.SGD([*made.parameters(), *net.parameters()], lr=1e-3)
    for _ in range(3):
        with torch.autocast("cpu", precision):
            embedding = net(x)
            assert embedding.dtype == precision
            loss = F.cross_entropy(made(embedding, labels), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grad = made.weight.grad
        assert grad is not None and grad.dtype == torch.float32
        # Slopes that had been through half precision would have its few digits.
        assert not torch.equal(grad, grad.to(precision).float())
        optimizer.step()
    assert made.weight.dtype == torch.float32
    assert not torch.equal(made.weight, w)


POLES = {
    "cos = 1": (1.0, 0.0),
    "cos = -1": (-1.0, 0.0),
    "1 by rounding": (1.0, 1e-4),
    "one step below 1": (1.0, 3.4e-4),
    "near 1": (1.0, 1e-2),
    "one step above -1": (-1.0, 3.4e-4),
    "near -1": (-1.0, 1e-2),
    "zero": (0.0, 0.0),
    "almost zero": (1e-20, 0.0),
}


@heads
@centres
@pytest.mark.parametrize("pole", POLES)
def test_margin__stable_at_the_poles(kind: type[CosineHead], k: int, pole: str) -> None:
    along, across = POLES[pole]
    axes = torch.eye(CLASSES + 1)
    w, labels = axes[:CLASSES].repeat_interleave(k, dim=0), torch.arange(CLASSES)
    x = (along * axes[:CLASSES] + across * axes[CLASSES]).requires_grad_()
    made = head(kind, w, k)
    logits = made(x, labels)
    x_slope, w_slope = slopes(F.cross_entropy(logits, labels, reduction="sum"), x, made.weight)
    if abs(along) == 1:
        expected = closed_form(kind, x.detach(), w, labels, k)
        torch.testing.assert_close(logits.double(), expected, atol=5e-3, rtol=0)
    assert bool(torch.isfinite(logits).all())
    for slope in (x_slope, w_slope):
        # Turning a unit vector moves no cosine, nor cos(theta + m), faster than by 1.
        assert float(slope.norm(dim=1).max()) <= 2 * SCALE


@heads
def test_harder__finite_slope_at_and_beyond_one(kind: type[CosineHead]) -> None:
    step = torch.finfo(torch.float32).eps
    cos = torch.tensor([1.0, -1.0, 1 - step, step - 1, 1 + step, -1 - step], requires_grad=True)
    harder = kind(DIM, CLASSES, margin=MARGIN).harder(cos)
    assert bool(torch.isfinite(harder).all())
    assert bool(torch.isfinite(slopes(harder.sum(), cos)[0]).all())


def test_cosines__never_beyond_one() -> None:
    x = torch.randn(500, DIM, generator=torch.Generator().manual_seed(1))
    made = head(ArcFace, torch.cat([x, -x]))
    raw = F.normalize(x) @ F.normalize(x).T
    assert float(raw.max()) > 1
    found = made.cosines(x).detach()
    assert float(found.max()) == 1
    assert float(found.min()) == -1


@heads
def test_margin__dead_embedding_does_not_drown_the_batch(kind: type[CosineHead]) -> None:
    x, w, labels = inputs()
    made = head(kind, w)
    alone = slopes(F.cross_entropy(made(x, labels), labels, reduction="sum"), made.weight)[0]
    dead = torch.cat([x, torch.zeros(1, DIM)])
    more = torch.cat([labels, labels[:1]])
    both = slopes(F.cross_entropy(made(dead, more), more, reduction="sum"), made.weight)[0]
    torch.testing.assert_close(alone, both)


def test_logits__carry_no_margin() -> None:
    x, w, _ = inputs()
    expected = SCALE * F.cosine_similarity(x.double()[:, None], w.double()[None], dim=2)
    found = head(ArcFace, w).logits(x).double()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@centres
def test_sub_cosines__belong_to_centres(k: int) -> None:
    x, w, _ = inputs(k)
    made = head(ArcFace, w, k)
    found = made.sub_cosines(x)
    assert found.shape == (len(x), CLASSES, k)
    assert made.centres().shape == (CLASSES, k, DIM)
    assert not made.centres().requires_grad
    torch.testing.assert_close(made.centres().norm(dim=2), torch.ones(CLASSES, k))
    expected = torch.einsum("bd,ckd->bck", F.normalize(x), made.centres())
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert torch.equal(made.cosines(x), found.amax(dim=2))
    assert made.cosines(x[:0]).shape == (0, CLASSES)


@heads
def test_margin__one_centre_keeps_old_weights_loading(kind: type[CosineHead]) -> None:
    made = kind(DIM, CLASSES)
    assert {name: tuple(v.shape) for name, v in made.state_dict().items()} == {
        "weight": (CLASSES, DIM)
    }
    assert kind(DIM, CLASSES, sub_centers=3).weight.shape == (CLASSES * 3, DIM)
