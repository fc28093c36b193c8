"""Spherical k-means of each class."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from tests.runtime.gallery.pictures import blobs, unit

from tk.runtime.gallery.sub_prototypes import spherical_kmeans, sub_prototypes


def tightness(rows: NDArray[np.float32], centers: NDArray[np.float32]) -> float:
    """Mean similarity to the nearest centre."""
    return float((rows @ centers.T).max(axis=1).mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 3, 8])
def test_kmeans__as_tight_as_scikit_learn(seed: int, count: int) -> None:
    rows = unit(np.random.default_rng(seed).normal(size=(120, 8)))
    labels = KMeans(count, n_init=10, random_state=0).fit_predict(rows)
    theirs = unit(np.stack([rows[labels == c].mean(axis=0) for c in range(count)]))
    centers = spherical_kmeans(rows, count, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-5)
    assert tightness(rows, centers) > tightness(rows, theirs) - 0.02
    # A fixed point: each centre is the mean direction of the rows nearest to it.
    nearest = (rows @ centers.T).argmax(axis=1)
    means = unit(np.stack([rows[nearest == c].mean(axis=0) for c in range(count)]))
    np.testing.assert_allclose(centers, means, atol=1e-5)


def test_sub_prototypes__finds_the_looks_of_a_class() -> None:
    # Two classes of three looks each: six clusters, found class by class.
    rows, looks = blobs(0, 6, 30)
    labels = looks % 2
    centers, owners = sub_prototypes(rows, labels, 2, 3)
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]
    found = (centers @ np.eye(6, 32).T).argmax(axis=1)
    assert set(found[:3]) == {0, 2, 4} and set(found[3:]) == {1, 3, 5}
    assert (centers @ np.eye(6, 32).T).max(axis=1).min() > 0.95


def test_sub_prototypes__few_equal_and_no_references() -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 1, 2, 2, 2]]
    centers, owners = sub_prototypes(rows, np.array([0, 0, 2, 2, 2]), 4, 5)
    assert owners.tolist() == [0, 0, 2], "as many centres as references that differ"
    assert {tuple(row) for row in centers[:2].tolist()} == {(1, 0, 0, 0), (0, 1, 0, 0)}
    assert centers[2].tolist() == [0, 0, 1, 0]
    assert centers.dtype == np.float32 and owners.dtype == np.int64
    assert sub_prototypes(rows[:0], np.zeros(0, np.int64), 0, 2)[0].shape == (0, 4)


def test_sub_prototypes__opposite_references_have_a_centre() -> None:
    rows = np.asarray([[1, 0], [-1, 0]], np.float32)
    centers, _ = sub_prototypes(rows, np.zeros(2, np.int64), 1, 1)
    assert np.linalg.norm(centers[0]) == pytest.approx(1)


def test_sub_prototypes__seeded_and_each_class_for_itself() -> None:
    rows = unit(np.random.default_rng(1).normal(size=(90, 8)))
    labels = np.arange(90) % 3
    centers, owners = sub_prototypes(rows, labels, 3, 4, seed=5)
    np.testing.assert_array_equal(sub_prototypes(rows, labels, 3, 4, seed=5)[0], centers)
    alone, _ = sub_prototypes(rows[labels == 1], np.zeros(30, np.int64), 1, 4, seed=5)
    np.testing.assert_array_equal(centers[owners == 1], alone)
