from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.preprocess import CropSpec, Image, ImageSpec, fit
from tk.train.embedder.augment import (
    _GEOMETRY,
    ROOM,
    Augment,
    Strength,
    _Geometry,
    _imperfect,
    shrink,
)
from tk.train.embedder.data import Picture, cut_picture

SPEC = ImageSpec(64, 64, anchor="center")
MASKED = CropSpec(background="mask")


def bar(*, mask: bool = True) -> Picture:
    """A diagonal bar, red at its upper left end and blue at the other, on noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(100, 200, (120, 160, 3), dtype=np.uint8)
    shape = np.zeros((120, 160), np.uint8)
    cv2.line(shape, (20, 20), (140, 100), 1, 15)
    left = np.arange(160)[None] < 80
    image[(shape > 0) & left] = (220, 30, 30)
    image[(shape > 0) & ~left] = (30, 30, 220)
    return Picture(image, shape > 0 if mask else None)


@pytest.mark.parametrize("strength", ["none", "light", "tools"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mask", [True, False])
def test_augment__same_numbers_same_canvas(strength: Strength, share: float, mask: bool) -> None:
    made = [Augment(strength, SPEC, MASKED, share) for _ in range(2)]
    first = [made[0](bar(mask=mask), np.random.default_rng(i)) for i in range(20)]
    for i in reversed(range(20)):  # the order of the calls does not count either
        canvas = made[1](bar(mask=mask), np.random.default_rng(i))
        assert canvas.shape == (64, 64, 3) and canvas.dtype == np.uint8
        assert np.array_equal(canvas, first[i])
    assert strength == "none" or len({canvas.tobytes() for canvas in first}) == 20


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_augment__none_is_what_evaluation_sees(share: float) -> None:
    spec = CropSpec(background="mask" if share else "keep")
    canvas = Augment("none", SPEC, spec, share)(bar(), np.random.default_rng(0))
    assert np.array_equal(canvas, fit(SPEC, cut_picture(bar(), spec))[0])


def is_object(canvas: Image) -> NDArray[np.bool_]:
    """Red or blue: noise and padding are grey."""
    return np.asarray(np.abs(canvas[..., 0].astype(int) - canvas[..., 2]) > 110)


@pytest.mark.parametrize("strength", ["light", "tools"])
def test_augment__object_is_whole_and_fills_the_canvas(strength: Strength) -> None:
    augment = Augment(strength, SPEC, CropSpec(), 0.0)
    augment.colour = augment.dropout = None
    for i in range(50):
        seen = is_object(augment(bar(), np.random.default_rng(i)))
        rows, columns = np.nonzero(seen)
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.72 * 64 <= longer <= 0.97 * 64
        assert not (seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any())


def ends(strength: Strength, mask: bool) -> NDArray[np.float64]:
    """(50, 2) direction (x, y) from the red end to the blue end."""
    augment = Augment(strength, SPEC, MASKED, 1.0 if mask else 0.0)
    augment.colour = augment.dropout = None
    found = []
    for i in range(50):
        canvas = augment(bar(mask=mask), np.random.default_rng(i)).astype(int)
        red = np.argwhere(canvas[..., 0] - canvas[..., 2] > 100).mean(axis=0)
        blue = np.argwhere(canvas[..., 2] - canvas[..., 0] > 100).mean(axis=0)
        found.append((blue - red)[::-1])
    return np.asarray(found)


@pytest.mark.parametrize("mask", [True, False])
def test_augment__light_keeps_orientation_and_tools_do_not(mask: bool) -> None:
    light = ends("light", mask)
    degrees = np.rad2deg(np.arctan2(light[:, 1], light[:, 0]))
    assert np.abs(degrees - np.rad2deg(np.arctan2(80, 120))).max() < 16
    quadrants = {(x > 0, y > 0) for x, y in ends("tools", mask).tolist()}
    assert len(quadrants) == 4


def test_augment__background_is_the_fill_colour_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    # With perfect masks: imperfect ones let bits of the background in, on purpose.
    monkeypatch.setitem(_GEOMETRY, "tools", replace(_GEOMETRY["tools"], error=0))
    fill = (10, 200, 30)
    augment = Augment("tools", SPEC, CropSpec(background="mask", fill=fill), 1.0)
    for i in range(20):
        canvas = augment(bar(), np.random.default_rng(i))
        assert (canvas[[0, 0, -1, -1], [0, -1, 0, -1]] == fill).all()


def test_augment__mix_paints_now_and_then() -> None:
    augment = Augment("none", SPEC, CropSpec(), 0.4)
    painted = [
        bool((augment(bar(), np.random.default_rng(i))[32, 4] == 114).all()) for i in range(200)
    ]
    assert 0.3 < np.mean(painted) < 0.5


def test_shrink__bound_and_thin_masks() -> None:
    small = shrink(bar(), 64)
    assert max(small.image.shape[:2]) == round(64 * ROOM)
    assert small.mask is not None and small.mask.shape == small.image.shape[:2]
    assert small.mask.mean() == pytest.approx(np.mean(bar().mask), abs=0.02)  # type: ignore[arg-type]
    assert shrink(bar(), 1000).image.shape == bar().image.shape
    hair = np.zeros((2000, 1000), np.bool_)
    hair[:, 500] = True
    thin = shrink(Picture(np.zeros((2000, 1000, 3), np.uint8), hair), 32)
    assert thin.mask is not None and thin.mask.any()


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.dstack([60 + 150 * x, 60 + 150 * y, 200 - 90 * x]).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (64, 40), (90, 70)])
@pytest.mark.parametrize("mask", [True, False])
def test_augment__without_chance_it_is_what_evaluation_sees(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, mask: bool
) -> None:
    still = _Geometry(angle=0, flip=0, margin=0, shift=0, blur=0, error=0)
    monkeypatch.setitem(_GEOMETRY, "light", still)
    shape = np.zeros((height, width), np.bool_)
    shape[height // 4 : -1, 1 : -width // 4] = True
    picture = Picture(smooth(height, width), shape if mask else None)
    augment = Augment("light", SPEC, CropSpec(margin=0.0), 0.0)
    augment.colour = None
    canvas = augment(picture, np.random.default_rng(0)).astype(int)
    expected = fit(SPEC, cut_picture(picture, CropSpec(margin=0.0)))[0].astype(int)
    inside = cv2.erode((expected != 114).all(axis=2).astype(np.uint8), np.ones((3, 3))) > 0
    assert inside.mean() > 0.3
    assert np.abs(canvas - expected)[inside].max() <= (3 if height >= 64 else 14)
    assert np.abs(canvas - expected)[inside].mean() <= (1 if height >= 64 else 3)
    assert np.mean((canvas == 114).all(axis=2) == (expected == 114).all(axis=2)) > 0.96


def test_imperfect__masks_have_the_flaws_of_a_segmenter() -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[30:66, 20:76] = 255
    missing, surplus = [], []
    for seed in range(40):
        kept = _imperfect(mask, 3.0, 70, np.random.default_rng(seed)) > 0
        missing.append((~kept & (mask > 0)).sum() / (mask > 0).sum())
        surplus.append((kept & (mask == 0)).sum() / (mask > 0).sum())
    assert 0.01 < np.mean(missing) < 0.35 and 0.01 < np.mean(surplus) < 0.35
    exact = _imperfect(mask, 0.0, 0, np.random.default_rng(0)) > 0
    assert (exact == (mask > 0)).mean() > 0.99
