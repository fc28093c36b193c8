"""Search: every mode against brute force, by FAISS and without it."""

from __future__ import annotations

import numpy as np
import pytest
from tests import tiny_bundles
from tests.runtime.gallery.pictures import unit

from tk.runtime.errors import TkError
from tk.runtime.gallery import prototypes
from tk.runtime.gallery.gallery import MODES, Gallery, SearchMode
from tk.runtime.gallery.prototypes import class_similarity, make_gallery
from tk.runtime.gallery.search import PrototypeSearch


@pytest.mark.parametrize("cells", [1, 130, 1 << 24])
@pytest.mark.parametrize("mode", MODES)
def test_search__equals_brute_force(
    mode: SearchMode, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    stacks = unit(random.normal(size=(50, 16)))
    labels = random.integers(0, 5, 50)
    labels[:5] = range(5)
    gallery = make_gallery(tuple("abcde"), stacks, labels, sub_prototypes=3)
    queries = unit(random.normal(size=(9, 16)))

    similarity = PrototypeSearch(gallery, mode).similarity(queries)

    if mode == "centroid":
        expected = queries @ gallery.centroids.T
    else:
        if mode == "sub":
            assert gallery.sub_centroids is not None and gallery.sub_labels is not None
            stacks, labels = gallery.sub_centroids, gallery.sub_labels
        all_pairs = queries @ stacks.T
        expected = np.stack([all_pairs[:, labels == c].max(axis=1) for c in range(5)], axis=1)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    monkeypatch.setattr(prototypes, "CELLS", cells)
    np.testing.assert_allclose(class_similarity(gallery, mode, queries), expected, atol=1e-6)


def test_search__no_queries_and_empty_class() -> None:
    gallery = tiny_bundles.tiny_gallery()
    assert PrototypeSearch(gallery).similarity(np.zeros((0, 3), np.float32)).shape == (0, 3)
    lonely = Gallery(("a", "b"), gallery.centroids[:2], gallery.stacks[:1], np.zeros(1, np.int64))
    similarity = PrototypeSearch(lonely, "stack").similarity(gallery.stacks[:1])
    assert similarity.tolist() == [[1.0, -1.0]]


def test_search__unknown_mode_and_no_sub_prototypes() -> None:
    gallery = tiny_bundles.tiny_gallery()
    with pytest.raises(TkError, match="centroid or stack or sub"):
        PrototypeSearch(gallery, "best")  # type: ignore[arg-type]
    with pytest.raises(TkError, match="--sub-prototypes"):
        PrototypeSearch(gallery, "sub")
    with pytest.raises(TkError, match="no classes"):
        PrototypeSearch(Gallery((), gallery.centroids[:0], gallery.stacks[:0], np.zeros(0, int)))
