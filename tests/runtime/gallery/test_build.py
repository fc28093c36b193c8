"""Building galleries from reference pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.runtime.gallery.pictures import COLORS, rgba, write_references

from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.gallery.build import build_gallery
from tk.runtime.gallery.references import find_references
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter


@pytest.fixture
def embedder(tiny_world: Path) -> Embedder:
    """The mean-colour embedder; it wants masked crops."""
    return Embedder(Bundle.open(tiny_world / "bundles" / "embedder"))


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


def test_build__sub_prototypes(embedder: Embedder, tmp_path: Path) -> None:
    folder = write_references(tmp_path / "refs")
    gallery, _ = build_gallery(folder, embedder, sub_prototypes=2)
    assert gallery.sub_centroids is not None and gallery.sub_labels is not None
    assert gallery.sub_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert set(gallery.thresholds) == {"centroid", "stack", "sub"}
    assert gallery.facts["sub_prototypes"] == 2

    plain, _ = build_gallery(folder, embedder)
    assert plain.sub_centroids is None and set(plain.thresholds) == {"centroid", "stack"}
    for mode, threshold in plain.thresholds.items():
        assert gallery.thresholds[mode] == threshold, "sub-prototypes change nothing else"
