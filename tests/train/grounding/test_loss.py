"""The loss against that of transformers, and the matching against scipy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss
from transformers.models.grounding_dino.modeling_grounding_dino import (
    build_label_maps,
    build_text_mask,
)

from tk.train.grounding.dense import make_places
from tk.train.grounding.loss import (
    Truth,
    Weights,
    contrast_loss,
    grounding_loss,
    weights_of,
    with_company,
)
from tk.train.grounding.matching import match
from tk.train.grounding.network import Outputs

LAYERS, QUERIES, PLACES = 3, 12, 80
IDS: Any = torch.tensor(
    # Three phrases of 2, 1 and 3 tokens; the same in another order, without padding.
    [
        [101, 7, 8, 1012, 9, 1012, 4, 5, 6, 1012, 102, 0],
        [101, 4, 5, 6, 1012, 7, 8, 8, 1012, 9, 1012, 102],
    ]
)
CONFIG = SimpleNamespace(
    class_cost=1.0, bbox_cost=5.0, giou_cost=2.0, bbox_loss_coefficient=5.0,
    giou_loss_coefficient=2.0, focal_alpha=0.25, auxiliary_loss=True, two_stage=True,
    decoder_layers=LAYERS,
)  # fmt: skip


def random_boxes(*shape: int) -> Tensor:
    return torch.cat([0.2 + 0.6 * torch.rand(*shape, 2), 0.05 + 0.3 * torch.rand(*shape, 2)], -1)


def random_outputs(counts: tuple[int, int]) -> tuple[Outputs, Truth, list[dict[str, Tensor]]]:
    """What a network might say about two pictures, and what is true, for us and for the library."""
    tokens = IDS > 0
    hidden = ~tokens[:, None]
    outputs = Outputs(
        torch.randn(LAYERS, 2, QUERIES, 12).masked_fill(hidden, -torch.inf).requires_grad_(True),
        random_boxes(LAYERS, 2, QUERIES).requires_grad_(True),
        torch.randn(2, PLACES, 12).masked_fill(hidden, -torch.inf).requires_grad_(True),
        torch.special.logit(random_boxes(2, PLACES)).requires_grad_(True),
        torch.zeros(2, PLACES, 8),
    )
    maps = build_label_maps(torch.zeros(2, 1, 12), IDS)
    labels = [
        {"class_labels": torch.randint(0, 3, (count,)), "boxes": random_boxes(count)}
        for count in counts
    ]
    named = [own[label["class_labels"]] for own, label in zip(maps, labels, strict=True)]
    boxes = torch.cat([label["boxes"] for label in labels])
    return outputs, Truth(boxes, torch.cat(named).bool(), counts, tokens), labels


def library_loss(outputs: Outputs, labels: list[dict[str, Tensor]]) -> Tensor:
    chosen = outputs.place_logits.amax(-1).topk(QUERIES, dim=1)[1]
    rows = torch.arange(2)[:, None]
    logits = outputs.logits
    mask = build_text_mask(logits[-1], (IDS > 0).long())  # type: ignore[no-untyped-call]
    total, _, _ = GroundingDinoForObjectDetectionLoss(  # type: ignore[no-untyped-call]
        logits[-1],
        labels,
        torch.device("cpu"),
        outputs.boxes[-1],
        CONFIG,
        build_label_maps(logits[-1], IDS),
        mask,
        outputs_class=logits,
        outputs_coord=outputs.boxes,
        encoder_logits=outputs.place_logits[rows, chosen],
        encoder_pred_boxes=outputs.place_boxes[rows, chosen].sigmoid(),
    )
    assert isinstance(total, Tensor)
    return total


def places_of(outputs: Outputs) -> Any:
    shapes = [(8, 8), (4, 4)]
    return make_places(shapes, 128, 128, torch.tensor([[128, 96], [100, 128]]))


@pytest.mark.parametrize("counts", [(3, 5), (1, 0), (0, 0), (15, 2)])
def test_published_loss__value_and_gradient_of_the_library(counts: tuple[int, int]) -> None:
    torch.manual_seed(sum(counts))
    outputs, truth, labels = random_outputs(counts)
    leaves = (outputs.logits, outputs.boxes, outputs.place_logits, outputs.place_boxes)
    own = grounding_loss(outputs, truth, weights_of(CONFIG), places_of(outputs), 0.0)["loss"]
    expected = library_loss(outputs, labels)
    assert float(own.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(own, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert mine.isfinite().all()


def test_dense_loss__its_weight_and_finite_gradients_at_the_edge() -> None:
    torch.manual_seed(0)
    outputs, truth, _ = random_outputs((3, 2))
    with torch.no_grad():
        outputs.place_boxes[:, ::3] = torch.inf
    places = places_of(outputs)
    one, two, none = (
        grounding_loss(outputs, truth, Weights(), places, weight) for weight in (1.0, 2.0, 0.0)
    )
    values = [{name: float(value.detach()) for name, value in own.items()} for own in (one, two)]
    step = values[1]["loss"] - values[0]["loss"]
    assert step == pytest.approx(values[0]["encoder"], rel=1e-5)
    assert step != pytest.approx(float(none["encoder"].detach()), rel=1e-3)
    for leaf in torch.autograd.grad(one["loss"], (outputs.place_logits, outputs.place_boxes)):
        assert leaf.isfinite().all() and leaf.any()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 4), (1, 30), (0, 7)])
def test_match__total_cost_of_scipy(shape: tuple[int, int]) -> None:
    costs = np.random.default_rng(shape[0]).normal(size=shape).astype(np.float32) * 10
    objects, queries = match(torch.from_numpy(costs))
    rows, columns = linear_sum_assignment(costs)
    assert len(objects) == min(shape) == len(set(queries.tolist()))
    assert costs[objects, queries].sum() == pytest.approx(costs[rows, columns].sum(), rel=1e-5)


def test_match__no_number_among_the_costs() -> None:
    objects, queries = match(torch.tensor([[torch.nan, 2.0, 1.0], [1.0, torch.inf, 3.0]]))
    assert objects.tolist() == [0, 1] and queries.tolist() == [2, 0]


def test_contrast_loss__cross_entropy_of_the_named_words() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, -torch.inf], [1.0, 0.5, 0.0, -0.5]])
    named = torch.tensor([[False, True, False, False], [True, True, False, False]])
    share = logits.softmax(-1)
    expected = -(share[0, 1].log() + (share[1, 0] + share[1, 1]).log())
    assert float(contrast_loss(logits, named)) == pytest.approx(float(expected), rel=1e-6)
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(contrast_loss(logits, named), logits)
    assert gradient.isfinite().all() and gradient[0, 3] == 0
    assert float(contrast_loss(logits[:0], named[:0]).detach()) == 0


def test_company__queries_on_an_object_of_their_picture() -> None:
    truth = Truth(
        torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]),
        torch.ones(3, 4, dtype=torch.bool), (2, 1), torch.ones(2, 4, dtype=torch.bool),
    )  # fmt: skip
    first = [[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.69, 0.7, 0.2, 0.2], [0.5] * 4]
    second = [[0.7, 0.7, 0.2, 0.2], [0.3, 0.31, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.1] * 4]
    pairs = torch.tensor([0, 3, 6]), torch.tensor([0, 1, 2])
    queries, objects = with_company(pairs, torch.tensor([first, second]), truth)
    assert queries.tolist() == [0, 3, 6, 1, 2, 5] and objects.tolist() == [0, 1, 2, 0, 1, 2]
    none = Truth(torch.zeros(0, 4), torch.zeros(0, 4).bool(), (0, 0), truth.tokens)
    empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert len(with_company(empty, torch.tensor([first, second]), none)[0]) == 0
