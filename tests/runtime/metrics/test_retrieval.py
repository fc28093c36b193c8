from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tk.runtime.metrics import retrieval
from tk.runtime.metrics.retrieval import recall_at_1


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
