from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tk.runtime.masks import Bits, upsample_logits

Logits = npt.NDArray[np.float32]


def blobs(seed: int, h: int, w: int) -> Logits:
    noise = np.random.default_rng(seed).standard_normal((h, w)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.float32)


def whole_then_cut(
    logits: Logits, frame: tuple[int, int, int, int], image_hw: tuple[int, int]
) -> Bits:
    """Resize all logits to the whole frame, then paste what of it lies in the image."""
    x0, y0, x1, y1 = frame
    resized = cv2.resize(logits, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) > 0
    height, width = image_hw
    out = np.zeros(image_hw, np.bool_)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    if top < bottom and left < right:
        out[top:bottom, left:right] = resized[top - y0 : bottom - y0, left - x0 : right - x0]
    return out


@pytest.mark.parametrize("image_hw", [(300, 400), (61, 47)])
@pytest.mark.parametrize("logits_hw", [(64, 64), (33, 96), (160, 200)])
@pytest.mark.parametrize(
    "frame",
    [
        (0, 0, 400, 300),
        (0, 0, 400, 400),  # letterbox: the frame reaches below the image
        (-30, -17, 250, 333),
        (20, 10, 45, 40),  # logits finer than pixels
        (350, 250, 500, 700),
    ],
)
def test_upsample_logits__equals_the_whole_resize(
    frame: tuple[int, int, int, int], logits_hw: tuple[int, int], image_hw: tuple[int, int]
) -> None:
    logits = blobs(sum(frame), *logits_hw)
    expected = whole_then_cut(logits, frame, image_hw)
    generator = np.random.default_rng(7)
    height, width = image_hw
    for _ in range(8):
        x0, x1 = sorted(generator.integers(-20, width + 20, 2).tolist())
        y0, y1 = sorted(generator.integers(-20, height + 20, 2).tolist())
        region = np.array([x0, y0, x1, y1])
        mask = upsample_logits(logits, np.array(frame, np.float32), region, image_hw)
        inside = np.zeros(image_hw, np.bool_)
        inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        differ = np.count_nonzero(mask.full() != (expected & inside))
        # A bilinear value within a rounding error of 0 may fall on either side.
        assert differ <= 1 + np.count_nonzero(inside) // 20_000


def test_upsample_logits__twelve_megapixels_differ_nowhere() -> None:
    logits = blobs(3, 256, 256)
    expected = whole_then_cut(logits, (0, 0, 4000, 3000), (3000, 4000))
    frame = np.array([0, 0, 4000, 3000], np.float32)
    mask = upsample_logits(logits, frame, np.array([500, 700, 1000, 1100]), (3000, 4000))
    np.testing.assert_array_equal(mask.pixels, expected[700:1100, 500:1000])
    assert (mask.x, mask.y) == (500, 700) and 0 < mask.area < mask.pixels.size


@pytest.mark.parametrize("logits", [blobs(5, 6, 5), np.ones((6, 5), np.float32)])
def test_upsample_logits__frame_between_pixels(logits: Logits) -> None:
    """Pixels whose centres lie in the frame, by the definition of bilinear, one at a time."""
    left, top, right, bottom = frame = np.array([2.7, 1.3, 17.4, 10.6], np.float32)
    mask = upsample_logits(logits, frame, np.array([0, 0, 20, 12]), (12, 20)).full()
    for y in range(12):
        for x in range(20):
            u = np.clip((x + 0.5 - left) * 5 / (right - left) - 0.5, 0, 4)
            v = np.clip((y + 0.5 - top) * 6 / (bottom - top) - 0.5, 0, 5)
            i, j = min(int(v), 4), min(int(u), 3)
            b, a = v - i, u - j
            upper = (1 - a) * logits[i, j] + a * logits[i, j + 1]
            lower = (1 - a) * logits[i + 1, j] + a * logits[i + 1, j + 1]
            inside = left <= x + 0.5 < right and top <= y + 0.5 < bottom
            assert mask[y, x] == (inside and (1 - b) * upper + b * lower > 0), (x, y)


@pytest.mark.parametrize(
    "region", [(5, 5, 5, 9), (9, 9, 5, 5), (30, 0, 40, 9), (-9, -9, 0, 0), (0, 0, 20, 2)]
)
def test_upsample_logits__nothing_to_compute(region: tuple[int, int, int, int]) -> None:
    frame = np.array([0, 3, 20, 12], np.float32)
    mask = upsample_logits(np.ones((4, 4), np.float32), frame, np.array(region), (12, 20))
    assert mask.area == 0 and not mask.full().any() and mask.tight_box() is None


def test_upsample_logits__one_logit_and_infinite_ones() -> None:
    frame, region = np.array([0, 0, 8, 8], np.float32), np.array([0, 0, 8, 8])
    assert upsample_logits(np.ones((1, 1), np.float32), frame, region, (8, 8)).area == 64
    half = np.full((8, 8), -np.inf, np.float32)
    half[:, :4], half[7, 7] = np.inf, np.nan
    mask = upsample_logits(half, frame, region, (8, 8))
    np.testing.assert_array_equal(mask.full(), half == np.inf)


def test_upsample_logits__refuses_an_infinite_frame() -> None:
    frame = np.array([0, 0, np.inf, 8], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        upsample_logits(np.ones((4, 4), np.float32), frame, np.array([0, 0, 8, 8]), (8, 8))
