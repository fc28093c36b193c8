"""Neighbours that rounding moves, against closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.metrics.neighbours import TIE, neighbours_kept


def on_circle(*degrees: float) -> NDArray[np.float64]:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def by_loops(reference: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    lost = out = 0.0
    for i, row in enumerate(reference):
        others = [j for j in range(len(reference)) if j != i]
        similar = {j: float(row @ reference[j]) for j in others}
        chosen = max(others, key=lambda j: float(found[i] @ found[j]))
        lost += max(similar.values()) - similar[chosen]
        out += max(similar.values()) - sum(similar.values()) / len(others)
    return 1 - lost / out


def test_neighbours__closed_form_on_a_circle() -> None:
    reference = on_circle(0, 10, 90)
    found = on_circle(0, 60, 90)  # the one at 10 degrees is now nearest to the one at 90
    c10, c80, c90 = (math.cos(math.radians(angle)) for angle in (10, 80, 90))
    lost = c10 - c80
    stands_out = (c10 - (c10 + c90) / 2) + (c10 - (c10 + c80) / 2) + (c80 - (c80 + c90) / 2)
    figures = neighbours_kept(reference, found)
    assert figures.kept == pytest.approx(1 - lost / stands_out, abs=1e-12)
    assert figures.same == pytest.approx(2 / 3)


def test_neighbours__equal_plain_loops() -> None:
    random = np.random.default_rng(0)
    for noise in (0.1, 0.5, 2.0):
        reference = random.normal(size=(20, 5))
        reference /= np.linalg.norm(reference, axis=1, keepdims=True)
        found = reference + noise * random.normal(size=reference.shape)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        figures = neighbours_kept(reference, found)
        assert figures.kept == pytest.approx(by_loops(reference, found), abs=1e-9)
        assert figures.kept < 1


def test_neighbours__lengths_and_order_of_columns_mean_nothing() -> None:
    reference = np.random.default_rng(1).normal(size=(30, 6))
    figures = neighbours_kept(reference, 7 * reference[:, ::-1])
    assert (figures.kept, figures.same) == (1.0, 1.0)


def test_neighbours__drawn_by_lot_keep_nothing_and_the_worst_less() -> None:
    random = np.random.default_rng(2)
    reference = random.normal(size=(400, 8))
    assert abs(neighbours_kept(reference, random.normal(size=(400, 8))).kept) < 0.1
    assert neighbours_kept(on_circle(0, 10, 180, 190), on_circle(0, 90, 1, 91)).kept < -0.5


@pytest.mark.parametrize("spread", [1e-1, 1e-2])
def test_neighbours__seen_also_where_the_cosine_sees_nothing(spread: float) -> None:
    """Embeddings around one direction: the same disorder, whatever the width of the bundle."""
    random = np.random.default_rng(3)
    own, other = random.normal(size=(2, 40, 6))
    middle = np.eye(7)[0]
    reference, found = (middle + spread * np.pad(x, ((0, 0), (1, 0))) for x in (own, other))
    cosine = (reference * found).sum(1) / (
        np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1)
    )
    if spread == 1e-2:
        assert cosine.min() > 0.998
    assert neighbours_kept(reference, found).kept < 0.3


def test_neighbours__ties_are_no_loss() -> None:
    reference = on_circle(0, 20, -20 - 1e-5, 180)  # cosines of 0 to both differ by less than TIE
    assert abs(math.cos(math.radians(20)) - math.cos(math.radians(20 + 1e-5))) < TIE
    found = on_circle(0, 21, -20, 180)
    figures = neighbours_kept(reference, found)
    assert (figures.kept, figures.same) == (1.0, 1.0)


def test_neighbours__nothing_to_lose_where_all_are_equally_near() -> None:
    assert neighbours_kept(np.eye(5), np.eye(5)[::-1]).kept == 1.0
    assert neighbours_kept(np.ones((5, 3)), np.random.default_rng(4).normal(size=(5, 3))).kept == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_neighbours__not_finite_is_no_figure(value: float) -> None:
    broken = on_circle(0, 10, 90)
    broken[1, 1] = value
    assert math.isnan(neighbours_kept(on_circle(0, 10, 90), broken).kept)


def test_neighbours__too_few_and_other_shapes() -> None:
    for left, right in ((2, 2), (4, 5)):
        with pytest.raises(ValueError, match="3 or more"):
            neighbours_kept(np.ones((left, 2)), np.ones((right, 2)))
