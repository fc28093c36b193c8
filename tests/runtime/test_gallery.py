"""Galleries: building, calibration, search, and files that cannot be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests import tiny_bundles

from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.gallery.build import build_gallery, calibrate, class_centroids, find_references
from tk.runtime.gallery.gallery import Gallery, open_gallery
from tk.runtime.gallery.search import PrototypeSearch
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter

COLORS = {"красный": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}


@pytest.fixture
def embedder(tiny_world: Path) -> Embedder:
    """The mean-colour embedder; it wants masked crops."""
    return Embedder(Bundle.open(tiny_world / "bundles" / "embedder"))


def rgba(color: tuple[int, int, int], seed: int) -> Image.Image:
    """A coloured disc on a transparent, misleading background."""
    random = np.random.default_rng(seed)
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[..., :3] = random.integers(0, 256, 3)
    yy, xx = np.mgrid[:40, :40]
    disc = (yy - 20) ** 2 + (xx - 20) ** 2 < 150
    picture[disc] = (*np.clip(np.add(color, random.integers(-5, 6, 3)), 0, 255), 255)
    return Image.fromarray(picture)


def write_references(folder: Path, count: int = 6) -> Path:
    for name, color in COLORS.items():
        (folder / name / "cropped").mkdir(parents=True)
        for index in range(count):
            rgba(color, index).save(folder / name / "cropped" / f"{index}.png")
    return folder


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_build__alpha_is_the_mask(embedder: Embedder, tmp_path: Path) -> None:
    gallery, report = build_gallery(write_references(tmp_path / "refs"), embedder)

    assert gallery.classes == ("blue", "green", "красный")
    assert report.references == 18 and not report.skipped
    for name, centroid in zip(gallery.classes, gallery.centroids, strict=True):
        assert centroid.argmax() == np.argmax(COLORS[name])
        assert centroid.max() > 0.9, "the background must not reach the embedder"
    assert gallery.facts["calibration"]["accuracy_centroid"] == 1.0


def test_build__masks_beside_and_missing_masks(embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "refs" / "green"
    (folder / "cropped").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(3):
        picture = rgba(COLORS["green"], index)
        picture.convert("RGB").save(folder / "cropped" / f"{index}.png")
        picture.getchannel("A").save(folder / "masks" / f"{index}_mask.png")
    rgba((1, 1, 1), 9).convert("RGB").save(folder / "cropped" / "bare.png")

    gallery, report = build_gallery(tmp_path / "refs", embedder)

    assert gallery.centroids[0].argmax() == 1
    assert len(report.skipped) == 1 and "bare.png has no mask" in report.skipped[0]


def test_build__segmenter_cuts_the_references_out(
    embedder: Embedder, tiny_world: Path, tmp_path: Path
) -> None:
    # The given mask is a whole square; the segmenter keeps only its bright half, and the annotator
    # would see no more of it.
    segmenter = Segmenter(Bundle.open(tiny_world / "bundles" / "segmenter"))
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = (0, 120, 0)
    picture[16:48, 16:32] = (250, 20, 20)
    for name, right in (("whole", 48), ("half", 32)):
        mask = np.zeros((64, 64), np.uint8)
        mask[16:48, 16:right] = 255
        for kind, pixels in (("cropped", picture), ("masks", mask)):
            (tmp_path / name / "tool" / kind).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / name / "tool" / kind / "a.png")

    given = build_gallery(tmp_path / "whole", embedder)[0]
    cut = build_gallery(tmp_path / "whole", embedder, segmenter)[0]
    seen = build_gallery(tmp_path / "half", embedder)[0]

    np.testing.assert_allclose(cut.centroids, seen.centroids, atol=1e-6)
    assert np.abs(given.centroids - seen.centroids).max() > 0.1
    assert cut.facts["masks"] == "by the segmenter"


def test_build__flat_folder_names_classes_by_file(embedder: Embedder, tmp_path: Path) -> None:
    for name, color in COLORS.items():
        rgba(color, 0).save(tmp_path / f"{name}.png")
    gallery, _ = build_gallery(tmp_path, embedder)
    assert set(gallery.classes) == set(COLORS)
    assert gallery.thresholds == {"centroid": -1.0, "stack": -1.0}, "nothing to calibrate on"


def test_build__nothing_usable(embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(TkError, match="not a folder"):
        find_references(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no picture")
    with pytest.raises(TkError, match="no usable reference for a"):
        build_gallery(tmp_path, embedder)


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


@pytest.mark.parametrize("mode", ["centroid", "stack"])
def test_search__equals_brute_force(mode: str) -> None:
    random = np.random.default_rng(0)
    stacks = unit(random.normal(size=(50, 16)))
    labels = random.integers(0, 5, 50)
    labels[:5] = range(5)
    gallery = Gallery(tuple("abcde"), class_centroids(stacks, labels, 5), stacks, labels)
    queries = unit(random.normal(size=(9, 16)))

    similarity = PrototypeSearch(gallery, mode).similarity(queries)  # type: ignore[arg-type]

    if mode == "centroid":
        expected = queries @ gallery.centroids.T
    else:
        all_pairs = queries @ stacks.T
        expected = np.stack([all_pairs[:, labels == c].max(axis=1) for c in range(5)], axis=1)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_search__no_queries_and_empty_class() -> None:
    gallery = tiny_bundles.tiny_gallery()
    assert PrototypeSearch(gallery).similarity(np.zeros((0, 3), np.float32)).shape == (0, 3)
    lonely = Gallery(("a", "b"), gallery.centroids[:2], gallery.stacks[:1], np.zeros(1, np.int64))
    similarity = PrototypeSearch(lonely, "stack").similarity(gallery.stacks[:1])
    assert similarity.tolist() == [[1.0, -1.0]]


def test_calibrate__rate_of_false_rejections_holds() -> None:
    random = np.random.default_rng(1)
    centers = np.eye(4, 32)
    labels = np.repeat(np.arange(4), 600)
    rows = unit(centers[labels] + 0.15 * random.normal(size=(2400, 32)))

    thresholds, facts = calibrate(rows, labels, tuple("abcd"), 0.05, seed=0)

    fresh = unit(centers[labels] + 0.15 * random.normal(size=(2400, 32)))
    gallery = Gallery(tuple("abcd"), class_centroids(rows, labels, 4), rows, labels)
    own = PrototypeSearch(gallery).similarity(fresh)[np.arange(2400), labels]
    assert (own < thresholds["centroid"]).mean() == pytest.approx(0.05, abs=0.02)
    assert facts["held_out"] == 800
