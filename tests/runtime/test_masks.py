from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco_mask

from tk.runtime.errors import TkError
from tk.runtime.masks import (
    Bits,
    BoxMask,
    coco_rle,
    decode_coco,
    decode_row_major,
    rle_row_major,
)


def loop_counts(pixels: npt.NDArray[np.bool_]) -> list[int]:
    """Run lengths of a flat mask, one pixel after the other."""
    counts, value = [0], False
    for pixel in pixels.tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def random_mask(seed: int) -> BoxMask:
    """A region anywhere in an image, often touching or filling it, from empty to full."""
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(1, 14, 2))
    y0, y1 = sorted(int(edge) for edge in generator.choice([0, height, *range(height)], 2))
    x0, x1 = sorted(int(edge) for edge in generator.choice([0, width, *range(width)], 2))
    density = generator.choice([0, 0.1, 0.5, 0.9, 1])
    return BoxMask(x0, y0, generator.random((y1 - y0, x1 - x0)) < density, height, width)


def one_pixel(x: int, y: int, height: int, width: int) -> BoxMask:
    return BoxMask(x, y, np.ones((1, 1), np.bool_), height, width)


NAMED = {
    "empty": BoxMask(2, 1, np.zeros((2, 3), np.bool_), 5, 7),
    "no region": BoxMask(0, 0, np.zeros((0, 0), np.bool_), 5, 7),
    "full": BoxMask(0, 0, np.ones((5, 7), np.bool_), 5, 7),
    "1x1 set": one_pixel(0, 0, 1, 1),
    "first pixel": one_pixel(0, 0, 5, 7),
    "last pixel": one_pixel(6, 4, 5, 7),
    "full rows": BoxMask(0, 1, np.ones((2, 7), np.bool_), 5, 7),
    "full columns": BoxMask(3, 0, np.ones((5, 2), np.bool_), 5, 7),
    "right edge": BoxMask(5, 1, np.ones((2, 2), np.bool_), 5, 7),
}
EVERY = [*NAMED.values(), *(random_mask(seed) for seed in range(300))]


def test_rle_row_major__equals_a_loop_over_pixels() -> None:
    for mask in EVERY:
        counts = rle_row_major(mask)
        assert counts == loop_counts(mask.full().ravel())
        assert all(type(count) is int for count in counts)
        decoded = decode_row_major([mask.height, mask.width], counts)
        assert decoded.dtype == np.bool_
        np.testing.assert_array_equal(decoded, mask.full())


def test_coco_rle__equals_pycocotools() -> None:
    for mask in EVERY:
        ours = coco_rle(mask)
        theirs = coco_mask.encode(np.asfortranarray(mask.full().astype(np.uint8)))
        assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert coco_mask.area(ours) == mask.area


def test_decode_coco__reads_text_bytes_and_lists() -> None:
    for mask in EVERY:
        rle = coco_rle(mask)
        as_list = loop_counts(mask.full().ravel(order="F"))
        for counts in (rle["counts"], rle["counts"].encode(), as_list):
            decoded = decode_coco({"size": rle["size"], "counts": counts})
            np.testing.assert_array_equal(decoded, mask.full())


def test_decode_coco__reads_long_runs_and_negative_differences() -> None:
    full = np.zeros((1500, 1100), np.bool_)
    full[7, 3] = full[100:1400, 50:1000] = full[1499, 1099] = True
    packed = coco_mask.encode(np.asfortranarray(full.astype(np.uint8)))
    np.testing.assert_array_equal(decode_coco(packed), full)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ([2, 3], [5]),
        ([2, 3], [7]),
        ([2, 3], []),
        ([2, 3], [3, -1, 4]),
        ([2, 3], [2.0, 4.0]),
        ([2, 3], ["6"]),
        ([2, 3], [[6]]),
        ([2, 3], [6, [0]]),
        ([2, 3], [True, False]),
        ([2, 3], [2**63 - 1, 2**63 - 1, 8]),
        ([2, 3], [2**80]),
        ([2, 3], None),
        ([2, 3], 6),
        ([2, 3, 1], [6]),
        ([2.0, 3.0], [6]),
        ([-2, -3], [6]),
        (None, [6]),
    ],
)
def test_decode_row_major__refuses(size: Any, counts: Any) -> None:
    with pytest.raises(TkError):
        decode_row_major(size, counts)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 3], "counts": "5"},  # too short
        {"size": [2, 3], "counts": "1000"},
        {"size": [2, 3], "counts": "P"},  # says that more follows
        {"size": [2, 3], "counts": "o" * 30 + "0"},  # wider than any number
        {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": "!"},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": [1, 2]},
        {"size": [2, 3]},
        [2, 3],
    ],
)
def test_decode_coco__refuses(rle: Any) -> None:
    with pytest.raises(TkError):
        decode_coco(rle)


def test_box_mask__area_box_and_crop() -> None:
    generator = np.random.default_rng(0)
    for mask in EVERY:
        full = np.zeros((mask.height, mask.width), np.bool_)
        h, w = mask.pixels.shape
        full[mask.y : mask.y + h, mask.x : mask.x + w] = mask.pixels
        np.testing.assert_array_equal(mask.full(), full)
        assert mask.area == full.sum()
        y0, y1 = sorted(generator.integers(0, mask.height + 1, 2).tolist())
        x0, x1 = sorted(generator.integers(0, mask.width + 1, 2).tolist())
        np.testing.assert_array_equal(mask.crop(x0, y0, x1, y1), full[y0:y1, x0:x1])
        check_tight_box(mask, full)


def check_tight_box(mask: BoxMask, full: Bits) -> None:
    box, (ys, xs) = mask.tight_box(), np.nonzero(full)
    if len(ys):
        assert box is not None and box.dtype == np.float32
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    else:
        assert box is None


def test_box_mask__crop_is_a_copy() -> None:
    mask = BoxMask(0, 0, np.ones((2, 2), np.bool_), 2, 2)
    mask.crop(0, 0, 2, 2)[:] = False
    assert mask.area == 4


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 8, 2), (0, 0, 2, 6), (3, 0, 2, 2)])
def test_box_mask__window_outside_the_image(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="window"):
        NAMED["full"].crop(*window)


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -1), (6, 0), (0, 4)])
def test_box_mask__region_outside_the_image(x: int, y: int) -> None:
    with pytest.raises(ValueError, match="leaves the image"):
        BoxMask(x, y, np.ones((2, 2), np.bool_), 5, 7)


def test_box_mask__pixels_are_bool() -> None:
    with pytest.raises(ValueError, match="uint8"):
        BoxMask(0, 0, np.ones((2, 2), np.uint8), 5, 7)
