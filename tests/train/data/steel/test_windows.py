from __future__ import annotations

import numpy as np
import pytest

from tk.train.data.steel.prepared import Box, Defect
from tk.train.data.steel.windows import choose_defects, square_window


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((800, 100, 840, 120), (792, 82, 848, 138)),  # 40 * 1.4 = 56, about the middle
        ((0, 0, 40, 20), (0, 0, 56, 56)),  # moved in from the corner, still square
        ((1590, 246, 1600, 256), (1584, 240, 1600, 256)),  # 14, but at least 16
        ((300, 0, 900, 256), (472, 0, 728, 256)),  # longer than the strip is high: the middle
        ((1400, 20, 1600, 80), (1344, 0, 1600, 256)),  # 280 is more than 256
    ],
)
def test_window__square_with_context(box: Box, window: Box) -> None:
    assert square_window(box, 1600, 256, 0.2) == window


def test_window__always_square_inside_and_round_what_fits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(v) for v in rng.integers(16, 400, 2))
        x = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
        y = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
        context = float(rng.uniform(0, 1))
        x0, y0, x1, y1 = square_window((x[0], y[0], x[1], y[1]), width, height, context)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert x1 - x0 == y1 - y0
        longer = max(x[1] - x[0], y[1] - y[0])
        assert x1 - x0 == min(max(int(longer * (1 + 2 * context)), 16), width, height)
        if longer <= min(width, height):
            assert x0 <= x[0] and x[1] <= x1 and y0 <= y[0] and y[1] <= y1


def test_choose__the_largest_of_each_class_in_turn() -> None:
    pits = [Defect(1, (10 * i, 0, 10 * i + 8, 8), area) for i, area in enumerate((5, 9, 7, 8))]
    crack, scale = Defect(2, (0, 50, 9, 90), 3), Defect(4, (50, 50, 90, 90), 900)
    chosen = choose_defects([*pits, crack, scale], 5)
    assert chosen == [pits[1], crack, scale, pits[3], pits[2]]
    assert choose_defects([*pits, crack, scale], 2) == [pits[1], crack]
    assert len(choose_defects([*pits, crack, scale], 99)) == 6
    assert choose_defects([], 5) == []
