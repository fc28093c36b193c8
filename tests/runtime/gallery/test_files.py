"""Gallery files: round trip, older ones, and ones that cannot be trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import tiny_bundles
from tests.runtime.gallery.pictures import blobs, write_references

from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import read_json, write_json
from tk.runtime.gallery.build import build_gallery
from tk.runtime.gallery.gallery import FACTS, Gallery, open_gallery
from tk.runtime.gallery.prototypes import make_gallery
from tk.runtime.heads.embedder import Embedder


@pytest.fixture
def embedder(tiny_world: Path) -> Embedder:
    """The mean-colour embedder; it wants masked crops."""
    return Embedder(Bundle.open(tiny_world / "bundles" / "embedder"))


def test_save__round_trip_without_pickle(embedder: Embedder, tmp_path: Path) -> None:
    gallery, _ = build_gallery(write_references(tmp_path / "refs"), embedder)
    gallery.save(tmp_path / "g")

    again = open_gallery(tmp_path / "g")
    with np.load(tmp_path / "g" / "prototypes.npz", allow_pickle=False) as archive:
        assert set(archive) == {"centroids", "stacks", "stack_labels", "id2cls", "cls2id"}

    np.testing.assert_array_equal(again.stacks, gallery.stacks)
    assert (again.classes, again.crop, again.thresholds) == (
        gallery.classes,
        gallery.crop,
        gallery.thresholds,
    )
    again.check_embedder(embedder)
    assert open_gallery(tmp_path / "g" / "prototypes.npz").classes == gallery.classes


def test_open__pickled_and_contradicting_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", centroids=np.asarray({"a": 1}, object))
    with pytest.raises(TkError, match="cannot be read as prototypes"):
        open_gallery(tmp_path / "old.npz")
    good = tiny_bundles.tiny_gallery()
    labels = np.asarray([0, 1, 7])
    Gallery(good.classes, good.centroids, good.stacks, labels).save(tmp_path / "bad")
    with pytest.raises(TkError, match="contradict"):
        open_gallery(tmp_path / "bad")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(TkError, match="cannot be read"):
        open_gallery(tmp_path / "text.npz")


def test_save__sub_prototypes_only_when_there(tmp_path: Path) -> None:
    rows, labels = blobs(0, 3, 8)
    gallery = make_gallery(tuple("abc"), rows, labels, sub_prototypes=2)
    gallery.save(tmp_path / "g")
    again = open_gallery(tmp_path / "g")
    for name in ("sub_centroids", "sub_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(gallery, name))

    make_gallery(tuple("abc"), rows, labels).save(tmp_path / "plain")
    with np.load(tmp_path / "plain" / "prototypes.npz") as archive:
        assert not [name for name in archive if name.startswith("sub_")]
    with pytest.raises(TkError, match="--sub-prototypes"):
        open_gallery(tmp_path / "plain").vectors("sub")


@pytest.mark.parametrize(
    "broken",
    [
        {"sub_labels": None},
        {"sub_labels": np.asarray([0, 3])},
        {"sub_labels": np.asarray([0, 1, 2])},
        {"sub_centroids": np.ones((2, 5), np.float32)},
        {"sub_centroids": np.full((2, 3), np.nan, np.float32)},
    ],
)
def test_open__contradicting_sub_prototypes(
    broken: dict[str, NDArray[np.float32] | None], tmp_path: Path
) -> None:
    with np.load(_saved(tmp_path)) as archive:
        arrays = dict(archive)
    arrays |= {"sub_centroids": np.eye(2, 3, dtype=np.float32), "sub_labels": np.arange(2)}
    path = tmp_path / "p.npz"
    np.savez(path, **arrays)
    assert open_gallery(path).sub_centroids is not None
    changed = {name: value for name, value in {**arrays, **broken}.items() if value is not None}
    np.savez(path, **changed)
    with pytest.raises(TkError, match="contradict"):
        open_gallery(path)


def _saved(folder: Path) -> Path:
    tiny_bundles.tiny_gallery().save(folder / "tiny")
    return folder / "tiny" / "prototypes.npz"


def test_open__facts_of_an_older_version(tmp_path: Path) -> None:
    tiny_bundles.tiny_gallery("abc").save(tmp_path / "g")
    facts = read_json(tmp_path / "g" / FACTS)
    del facts["checkpoint_sha256"]
    write_json(tmp_path / "g" / FACTS, facts)
    assert open_gallery(tmp_path / "g").checkpoint_sha256 == ""


def test_check__embeddings_of_a_checkpoint_fit_its_bundles_only(
    embedder: Embedder, tmp_path: Path
) -> None:
    replace(tiny_bundles.tiny_gallery(), checkpoint_sha256="1" * 64).save(tmp_path / "g")
    gallery = open_gallery(tmp_path / "g")
    gallery.check_embedder(embedder)  # a bundle that does not say what it comes from
    embedder.manifest = replace(embedder.manifest, source={"sha256": "1" * 64})
    gallery.check_embedder(embedder)
    embedder.manifest = replace(embedder.manifest, source={"sha256": "2" * 64})
    with pytest.raises(TkError, match="another embedder"):
        gallery.check_embedder(embedder)
