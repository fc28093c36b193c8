"""The one letterbox and the one way to cut a crop."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import numpy as np
import pytest

from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, ImageSpec, cut_crop, fit, place, spec_from_json

SIZES = [(1, 1), (1, 20000), (20000, 1), (480, 640), (641, 333), (64, 64), (63, 65), (4000, 3000)]


@pytest.mark.parametrize("anchor", ["corner", "center"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_place__boxes_come_back(anchor: str, height: int, width: int) -> None:
    spec = ImageSpec(64, 96, anchor=anchor)  # type: ignore[arg-type]
    placement = place(spec, height, width)
    boxes = np.asarray([[0, 0, width, height], [0.25 * width, 0, 0.5 * width, height]], np.float32)

    on_canvas = placement.to_canvas(boxes)

    x0, y0, x1, y1 = on_canvas[0]
    assert (x1 - x0, y1 - y0) == pytest.approx(placement.valid_hw[::-1], abs=1e-3)
    assert x0 >= 0 and y0 >= 0 and x1 <= 96 + 1e-3 and y1 <= 64 + 1e-3
    np.testing.assert_allclose(placement.to_image(on_canvas), boxes, rtol=1e-4, atol=1e-3)


def test_place__keeps_the_aspect_ratio() -> None:
    assert place(ImageSpec(64, 96), 480, 640).valid_hw == (64, 85)
    assert place(ImageSpec(64, 96, mode="stretch"), 480, 640).valid_hw == (64, 96)


def test_fit__pads_with_the_grey_and_keeps_the_picture() -> None:
    image = np.full((10, 20, 3), 200, np.uint8)
    canvas, placement = fit(ImageSpec(40, 40, pad=7), image)

    h, w = placement.valid_hw
    assert (h, w) == (20, 40)
    assert (canvas[:h, :w] == 200).all()
    assert (canvas[h:] == 7).all()


def test_fit__shrinking_is_area_averaging() -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 80, 3), np.uint8)
    canvas, _ = fit(ImageSpec(60, 40), image)

    blocks = image.reshape(60, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(canvas - blocks).max() <= 0.51


def test_fit__growing_is_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    canvas, _ = fit(ImageSpec(60, 40), image)
    np.testing.assert_array_equal(canvas, cv2.resize(image, (40, 60)))


def test_fit__same_size_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(fit(ImageSpec(32, 32), image)[0], image)


def test_spec__json_round_trip_and_unknown_keys() -> None:
    spec = CropSpec(margin=0.2, background="mask", fill=(1, 2, 3))
    assert spec_from_json(CropSpec, asdict(spec)) == spec
    with pytest.raises(TkError, match="other keys"):
        spec_from_json(CropSpec, {**asdict(spec), "colour": "red"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 0, "width": 3}, "positive size"),
        ({"height": 3, "width": 3, "mode": "squash"}, "unknown mode"),
        ({"height": 3, "width": 3, "anchor": "left"}, "unknown anchor"),
    ],
)
def test_spec__bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(TkError, match=message):
        ImageSpec(**values)  # type: ignore[arg-type]


def test_crop__margin_and_clipping() -> None:
    image = np.arange(100 * 100 * 3).reshape(100, 100, 3).astype(np.uint8)
    box = np.asarray([10, 20, 30, 25], np.float32)

    crop = cut_crop(image, box, CropSpec(margin=0.5))

    np.testing.assert_array_equal(crop, image[10:35, 0:40])


@pytest.mark.parametrize("box", [[-50, -50, -10, -10], [500, 500, 600, 600], [5, 5, 5, 5]])
def test_crop__is_never_empty(box: list[float]) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    assert min(cut_crop(image, np.asarray(box, np.float32), CropSpec()).shape[:2]) >= 1


def test_crop__mask_paints_the_background() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    mask = BoxMask(5, 5, np.eye(4, dtype=bool), 20, 20)
    spec = CropSpec(margin=0.25, background="mask", fill=(9, 8, 7))

    crop = cut_crop(image, np.asarray([5, 5, 9, 9], np.float32), spec, mask)

    assert crop.shape == (6, 6, 3)
    inside = np.zeros((6, 6), bool)
    inside[1:5, 1:5] = np.eye(4, dtype=bool)
    assert (crop[inside] == 200).all()
    assert (crop[~inside] == (9, 8, 7)).all()


def test_crop__mask_needed_and_missing() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    box = np.asarray([5, 5, 9, 9], np.float32)
    with pytest.raises(TkError, match="no mask"):
        cut_crop(image, box, CropSpec(background="mask"))
