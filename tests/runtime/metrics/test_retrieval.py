from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.neighbors import NearestNeighbors

from tk.runtime.metrics import retrieval
from tk.runtime.metrics.retrieval import map_at_r, nearest, recall_at_1


@pytest.mark.parametrize("chunk", [7, 50, 1024])
def test_recall_at_1__equals_scikit_learn(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 8, 50)
    noise = generator.standard_normal((50, 16))
    rows = generator.standard_normal((8, 16))[labels] + 1.5 * noise
    embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(embeddings)
    nearest = search.kneighbors(return_distance=False)[:, 0]  # without the query itself
    expected = np.mean(labels[nearest] == labels)
    assert 0 < expected < 1
    assert recall_at_1(embeddings, labels) == pytest.approx(expected)


def test_recall_at_1__members_alone_in_their_class_do_not_count() -> None:
    embeddings = np.array([[1, 0], [0.99, 0.14], [0, 1]], np.float32)
    assert recall_at_1(embeddings, np.array([4, 4, 9])) == 1.0
    assert recall_at_1(embeddings, np.array([4, 9, 4])) == 0.0
    assert np.isnan(recall_at_1(embeddings, np.array([1, 2, 3])))
    assert np.isnan(recall_at_1(np.zeros((0, 2), np.float32), np.zeros(0, np.int64)))


def clusters(seed: int, sizes: list[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Overlapping classes of the given sizes, in mixed order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers = generator.standard_normal((len(sizes), 12))
    rows = centers[labels] + 1.2 * generator.standard_normal((len(labels), 12))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("cells", [1, 700, 1 << 24])
@pytest.mark.parametrize("sizes", [[10] * 6, [1, 2, 3, 40, 1, 9], [2] * 20])
def test_map_at_r__equals_pytorch_metric_learning(
    sizes: list[int], cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "CELLS", cells)
    embeddings, labels = clusters(len(sizes), sizes)
    calculator = AccuracyCalculator(
        include=("mean_average_precision_at_r", "precision_at_1"), device=torch.device("cpu")
    )
    expected = calculator.get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(labels))
    assert 0 < expected["mean_average_precision_at_r"] < 1
    found = map_at_r(embeddings, labels)
    assert found == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-6)
    assert recall_at_1(embeddings, labels) == pytest.approx(expected["precision_at_1"], abs=1e-6)


def test_map_at_r__by_hand_and_nothing() -> None:
    angles = np.deg2rad([0, 10, 25, 90, 100])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert map_at_r(rows, np.array([0, 0, 0, 1, 1])) == 1.0
    # 0 of class 0 sees 1 (wrong), 2 (right): half of R = 2 at precision 1/2.
    # 2 sees 1 (wrong), 0 (right): the same. 4 sees 3 (wrong), 2 (right).
    # R is 2 for these three; 1 sees 0, of R = 1 (wrong); 3 sees 4 (wrong).
    assert map_at_r(rows, np.array([0, 1, 0, 1, 0])) == pytest.approx(0.75 / 5)
    assert np.isnan(map_at_r(rows, np.arange(5)))
    assert np.isnan(map_at_r(rows[:0], np.zeros(0, np.int64)))


@pytest.mark.parametrize("count", [1, 5, 60, 100])
@pytest.mark.parametrize("cells", [1, 500, 1 << 24])
def test_nearest__equals_scikit_learn(
    count: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "CELLS", cells)
    keys, _ = clusters(1, [60])
    queries, _ = clusters(2, [23])
    distance, expected = (
        NearestNeighbors(n_neighbors=min(count, 60), metric="cosine", algorithm="brute")
        .fit(keys)
        .kneighbors(queries)
    )
    indices, similarity = nearest(queries, keys, count)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-5)
    assert (str(indices.dtype), str(similarity.dtype)) == ("int64", "float32")


def test_nearest__equal_keys_in_order_and_nothing_to_find() -> None:
    key = np.array([[1, 0]], np.float32)
    assert nearest(key, np.repeat(key, 4, axis=0), 4)[0].tolist() == [[0, 1, 2, 3]]
    mixed = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert nearest(key, mixed, 2)[0].tolist() == [[1, 3]]
    assert nearest(key, mixed, 4)[0].tolist() == [[1, 3, 4, 0]]
    for queries, keys, shape in ((key, key[:0], (1, 0)), (key[:0], key, (0, 1))):
        indices, similarity = nearest(queries, keys, 1)
        assert indices.shape == similarity.shape == shape


def test_retrieval__embeddings_of_a_diverged_model_do_not_crash() -> None:
    keys = np.array([[np.nan, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert nearest(keys[2:], keys, 2)[0].shape == (2, 2)
    assert 0 <= map_at_r(keys, np.array([0, 0, 1, 1])) <= 1
