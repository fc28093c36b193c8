from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFont

from tk.runtime import draw
from tk.runtime.draw import (
    PALETTE,
    UNKNOWN_COLOR,
    Drawn,
    class_color,
    class_colors,
    draw_detections,
)

U8 = NDArray[np.uint8]
FONT = Path(draw.__file__).parent / "fonts" / "DejaVuSans-subset.ttf"


def grey_picture(height: int = 200, width: int = 300) -> U8:
    return np.full((height, width, 3), 128, np.uint8)


def box(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def changed(before: U8, after: U8) -> NDArray[np.bool_]:
    return np.asarray((before != after).any(axis=2))


def test_draw__mask_tinted_outside_untouched() -> None:
    image = grey_picture()
    mask = np.zeros((60, 80), bool)
    mask[10:50, 10:70] = True
    item = Drawn(box(40, 30, 120, 90), "", "hammer", (40, 30, mask))
    result = draw_detections(image, [item])
    assert (image == 128).all(), "the picture given must stay as it was"
    inside = result[45:75, 55:105].reshape(-1, 3)
    color = np.array(class_color("hammer"))
    assert (np.sign(inside - 128.0) == np.sign(color - 128.0)).all()
    assert len(np.unique(inside, axis=0)) == 1
    touched = changed(image, result)
    assert not touched[33:40, 43:117].any(), "inside the box but outside the mask"
    touched[27:93, 37:123] = False
    assert not touched.any(), "outside the box"


def test_draw__overlapping_masks_blended_once() -> None:
    full = np.ones((40, 40), bool)
    one = Drawn(box(10, 10, 50, 50), "", "a", (10, 10, full))
    once = draw_detections(grey_picture(), [one])
    twice = draw_detections(grey_picture(), [one, one])
    np.testing.assert_array_equal(once, twice)


def test_draw__mask_reaches_outside() -> None:
    image = grey_picture(50, 50)
    mask = np.ones((100, 100), bool)
    result = draw_detections(image, [Drawn(box(-30, -20, 70, 80), "x", "a", (-30, -20, mask))])
    assert changed(image, result).all()
    away = Drawn(box(60, 60, 90, 90), "x", "a", (60, 60, mask))
    np.testing.assert_array_equal(draw_detections(image, [away]), image)


def test_draw__large_photo_scaled_with_its_results() -> None:
    image = grey_picture(1000, 2000)
    mask = np.ones((400, 600), bool)
    item = Drawn(box(800, 400, 1400, 800), "", "a", (800, 400, mask))
    result = draw_detections(image, [item], max_side=500)
    assert result.shape == (250, 500, 3)
    rows, columns = np.nonzero(changed(grey_picture(250, 500), result))
    assert (rows.min(), columns.min()) == pytest.approx((100, 200), abs=2)
    assert (rows.max(), columns.max()) == pytest.approx((199, 349), abs=2)


def plate_of(label: str, height: int = 120, width: int = 240) -> U8:
    item = Drawn(box(20, 60, 200, 110), label, "a")
    return draw_detections(grey_picture(height, width), [item])


def test_draw__cyrillic_is_not_tofu() -> None:
    missing = "\ue123"  # private use: the font has no glyph for it
    assert not (plate_of("Ж") == plate_of("Ы")).all()
    assert (plate_of(missing) == plate_of("\ue124")).all()
    for letter in "АБВЖЫЯабвжыяЁёЇїΩ":
        assert plate_of(letter).tobytes() != plate_of(missing).tobytes()


@pytest.mark.parametrize(
    "letters",
    [
        "".join(map(chr, range(0x21, 0x7F))),
        "".join(map(chr, [*range(0xA1, 0xAD), *range(0xAE, 0x180)])),
        "".join(map(chr, range(0x400, 0x460))),
        "αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΩ",
        "«»„“”‘’–—…№€₽±×°",
    ],
)
def test_font__has_the_letters(letters: str) -> None:
    font = ImageFont.truetype(str(FONT), 20)
    tofu = bytes(font.getmask("\ue123"))
    assert [c for c in letters if bytes(font.getmask(c)) == tofu] == []


def test_font__small_and_licensed() -> None:
    assert FONT.stat().st_size < 150_000
    assert "Bitstream Vera" in (FONT.parent / "LICENSE").read_text()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (8, 8), (20, 60)])
def test_draw__tiny_pictures(shape: tuple[int, int]) -> None:
    image = grey_picture(*shape)
    item = Drawn(box(0, 0, 1, 1), "Разводной ключ 0.87", "a", (0, 0, np.ones((1, 1), bool)), True)
    result = draw_detections(image, [item])
    assert result.shape == image.shape
    assert changed(image, result)[0, 0]


@pytest.mark.parametrize(
    "corners",
    [
        (-1e9, -1e9, 1e9, 1e9),
        (np.nan, 0, 10, 10),
        (-np.inf, -np.inf, np.inf, np.inf),
        (500, 500, 600, 600),
        (50, 50, 50, 50),
        (80, 80, 20, 20),
    ],
)
def test_draw__strange_boxes(corners: tuple[float, float, float, float]) -> None:
    result = draw_detections(grey_picture(), [Drawn(box(*corners), "name", "a")])
    assert result.shape == (200, 300, 3)


def test_draw__huge_box_lines_lie_on_the_edge() -> None:
    result = draw_detections(grey_picture(), [Drawn(box(-1e6, -1e6, 1e6, 1e6), "", "a")])
    for edge in (result[0], result[-1], result[:, 0], result[:, -1]):
        assert (edge == class_color("a")).all()
    assert (result[20:-20, 20:-20] == 128).all()


def test_draw__labels_apart_and_inside() -> None:
    image = grey_picture(400, 500)
    names = ["alpha", "beta", "gamma", "delta"]
    colors = dict(zip(names, PALETTE, strict=False))
    items = [Drawn(box(430, 2, 499, 60), name, name) for name in names]
    result = draw_detections(image, items, colors=colors)
    areas = []
    for name in names:  # a plate alone shows how many pixels of its colour to expect
        alone = draw_detections(image, [Drawn(box(430, 2, 499, 60), name, name)], colors=colors)
        areas.append(int((alone == colors[name]).all(axis=2).sum()))
    seen = [int((result == colors[name]).all(axis=2).sum()) for name in names]
    outline = 2 * (70 + 58)
    assert all(got >= area - outline for got, area in zip(seen, areas, strict=True))


def test_draw__emphasis_is_heavier() -> None:
    plain, heavy = (
        draw_detections(grey_picture(), [Drawn(box(50, 50, 150, 150), "", "a", None, emphasis)])
        for emphasis in (False, True)
    )
    assert changed(grey_picture(), heavy).sum() > changed(grey_picture(), plain).sum()


def test_draw__odd_labels() -> None:
    for label in ("", "two\nlines", "\udcff", "名前", "x" * 5000):
        drawn = draw_detections(grey_picture(), [Drawn(box(50, 50, 150, 150), label, label)])
        assert drawn.shape == grey_picture().shape
        assert changed(grey_picture(), drawn).any(), "at least the box is drawn"


def test_class_color__stable_between_processes() -> None:
    code = "from tk.runtime.draw import class_color; print(class_color('Ключ'))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert text.stdout.strip() == str(class_color("Ключ"))
    assert class_color("unknown") == UNKNOWN_COLOR


def test_class_colors__distinct_and_independent_of_order() -> None:
    names = [f"class {i}" for i in range(len(PALETTE))]
    colors = class_colors([*names, "unknown"])
    assert len(set(colors.values())) == len(names) + 1
    assert colors == class_colors(["unknown", *reversed(names)])
    assert set(class_colors([f"{i}" for i in range(60)]).values()) == set(PALETTE)
