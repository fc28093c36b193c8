from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou
from torchvision.ops import nms as torch_nms

from tk.runtime.boxes import Boxes, clip, enlarge, iou_matrix, nms, valid


def random_boxes(seed: int, count: int) -> Boxes:
    generator = np.random.default_rng(seed)
    corner = generator.uniform(-20, 80, (count, 2))
    return np.hstack([corner, corner + generator.uniform(1, 60, (count, 2))]).astype(np.float32)


def rows(*boxes: tuple[float, float, float, float]) -> Boxes:
    return np.array(boxes, np.float32).reshape(-1, 4)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1), (40, 27)])
def test_iou_matrix__equals_torchvision(n: int, m: int) -> None:
    a, b = random_boxes(1, n), random_boxes(2, m)
    ours = iou_matrix(a, b)
    assert ours.dtype == np.float32 and ours.shape == (n, m)
    theirs = box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_iou_matrix__box_without_area_overlaps_nothing() -> None:
    flat = rows((5, 5, 5, 9), (9, 9, 2, 2))
    assert not iou_matrix(flat, rows((0, 0, 10, 10), (5, 5, 5, 9))).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_nms__equals_torchvision(seed: int, threshold: float) -> None:
    boxes = random_boxes(seed, 300)
    # Few distinct scores: ties must be broken as torchvision does, by index.
    scores = np.random.default_rng(seed).integers(0, 12, 300).astype(np.float32)
    theirs = torch_nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert nms(boxes, scores, threshold).tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        (rows(), [], []),
        (rows((0, 0, 4, 4)), [0.1], [0]),
        (rows((0, 0, 4, 4), (0, 0, 4, 4)), [0.5, 0.5], [0]),
        (rows((0, 0, 4, 4), (0, 0, 4, 4), (5, 5, 9, 9)), [0.2, 0.5, 0.9], [2, 1]),
        (rows((0, 0, 4, 2), (0, 0, 4, 4)), [0.9, 0.8], [0, 1]),  # overlap equal to the limit
    ],
)
def test_nms__small_cases(boxes: Boxes, scores: list[float], kept: list[int]) -> None:
    result = nms(boxes, np.array(scores, np.float32), 0.5)
    assert result.dtype == np.int64 and result.tolist() == kept


def test_clip__cuts_each_side_and_copies() -> None:
    boxes = rows((-3, -4, 50, 60), (1, 2, 3, 4), (30, 30, 40, 40))
    cut = clip(boxes, 20, 10)
    assert cut.tolist() == [[0, 0, 20, 10], [1, 2, 3, 4], [20, 10, 20, 10]]
    assert boxes[0, 0] == -3 and cut.dtype == np.float32
    assert valid(cut).tolist() == [True, True, False]


def test_enlarge__moves_sides_by_the_longer_one() -> None:
    assert enlarge(rows((10, 20, 30, 60)), 0.1).tolist() == [[6, 16, 34, 64]]
    assert enlarge(rows(), 0.1).shape == (0, 4)


def test_valid__finite_with_area() -> None:
    boxes = rows(
        (0, 0, 1, 1), (0, 0, 0, 1), (2, 0, 1, 1), (3, 3, 1, 1), (0, 0, np.nan, 1), (0, 0, np.inf, 1)
    )
    assert valid(boxes).tolist() == [True, False, False, False, False, False]
    assert valid(rows()).shape == (0,)
