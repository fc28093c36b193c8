"""Student and teacher see one and the same view."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tk.runtime.preprocess import Image, ImageSpec, fit
from tk.train.student.views import Kind, SharedViews

SMALL, LARGE = (ImageSpec(side, side, anchor="center") for side in (32, 96))


def picture() -> Image:
    """A (120, 120, 3) picture without any symmetry, soft enough to be compared at two sizes."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.uniform(0, 255, (6, 6, 3)), (120, 120), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(noise, 0, 255), np.uint8)


def difference(one: Image, other: Image) -> float:
    """Mean absolute difference at the smaller size, grey levels."""
    side = min(one.shape[0], other.shape[0])
    a, b = (cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA) for i in (one, other))
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("kind", ["none", "light", "tools", "surface"])
def test_shared_views__are_the_same_view_at_two_sizes(kind: Kind) -> None:
    views, image = SharedViews(kind, 0.5, [SMALL, LARGE]), picture()
    pairs = [views(image, np.random.default_rng(seed)) for seed in range(8)]
    assert all(a.shape == (32, 32, 3) and b.shape == (96, 96, 3) for a, b in pairs)
    assert all(a.dtype == b.dtype == np.uint8 for a, b in pairs)
    together = max(difference(a, b) for a, b in pairs)
    assert together < 3
    if kind != "none":  # ... and another draw is another view
        apart = min(difference(pairs[0][0], b) for _, b in pairs[1:])
        assert apart > 2 * together


@pytest.mark.parametrize("kind", ["light", "tools", "surface"])
def test_shared_views__equal_generators_equal_views(kind: Kind) -> None:
    first, second = (
        SharedViews(kind, 0.5, [SMALL, LARGE])(picture(), np.random.default_rng(7))
        for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_shared_views__the_students_view_does_not_depend_on_the_order_of_canvases() -> None:
    ahead = SharedViews("surface", 0.5, [SMALL, LARGE])(picture(), np.random.default_rng(1))
    behind = SharedViews("surface", 0.5, [LARGE, SMALL])(picture(), np.random.default_rng(1))
    assert np.array_equal(ahead[0], behind[1]) and np.array_equal(ahead[1], behind[0])


def test_shared_views__none_is_what_evaluation_sees() -> None:
    found = SharedViews("none", 0.5, [SMALL, LARGE])(picture(), np.random.default_rng(0))
    for spec, canvas in zip((SMALL, LARGE), found, strict=True):
        assert np.array_equal(canvas, fit(spec, picture())[0])
