"""Figures of equality on cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.parity import compare, row_cosine


def test_row_cosine__closed_form_and_not_finite() -> None:
    a = np.asarray([[1.0, 0.0], [1.0, 0.0]])
    b = np.asarray([[2.0, 0.0], [1.0, 1.0]])
    assert row_cosine(a, b) == pytest.approx(np.sqrt(0.5))
    assert np.isnan(row_cosine(a, a * np.nan))


def _detections(shift: float, drop: float) -> dict[str, NDArray[np.float32]]:
    boxes = np.asarray([[[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 1, 1]]], np.float32)
    scores = np.asarray([[[0.9], [0.5], [0.01]]], np.float32)
    return {"boxes": boxes + np.float32(shift), "scores": scores - np.float32(drop)}


def test_detector__order_does_not_matter() -> None:
    reference = _detections(0, 0)
    swapped = {name: array[:, ::-1].copy() for name, array in reference.items()}
    measures = compare("detector", "model", reference, swapped, "fp32")
    assert [m.value for m in measures] == [1.0, 0.0]
    assert all(m.passed for m in measures)


def test_detector__a_moved_box_and_a_lost_score_fail() -> None:
    box, score = compare("detector", "model", _detections(0, 0), _detections(1, 0.1), "fp32")
    assert box.value == pytest.approx(81 / 119)  # the small box moved by (1, 1)
    assert score.value == pytest.approx(0.1)
    assert not box.passed and not score.passed


def test_detector__without_confident_boxes_something_is_compared() -> None:
    reference = _detections(0, 0)
    reference["scores"] = reference["scores"] * np.float32(0.01)
    other = {**reference, "boxes": reference["boxes"] + np.float32(50)}
    assert not all(m.passed for m in compare("detector", "model", reference, other, "fp32"))


def test_detector__not_finite_fails() -> None:
    broken = _detections(0, 0)
    broken["boxes"] = broken["boxes"] * np.nan
    assert not any(
        m.passed for m in compare("detector", "model", _detections(0, 0), broken, "fp32")
    )


def test_decoder__empty_masks_are_equal() -> None:
    empty = {"logits": np.full((2, 4, 4), -1, np.float32), "iou": np.zeros(2, np.float32)}
    assert all(m.passed for m in compare("segmenter", "decoder", empty, empty, "fp32"))


def test_decoder__one_wrong_mask_of_many_fails() -> None:
    logits = np.ones((5, 4, 4), np.float32)
    other = logits.copy()
    other[3, :2] = -1
    iou = np.ones(5, np.float32)
    reference = {"logits": logits, "iou": iou}
    found = {"logits": other, "iou": iou}
    first, _ = compare("segmenter", "decoder", reference, found, "fp32")
    assert first.value == 0.5 and not first.passed


def test_compare__other_shape_is_an_error() -> None:
    a = {"embedding": np.ones((2, 3), np.float32)}
    with pytest.raises(TkError, match="another shape"):
        compare("embedder", "model", a, {"embedding": np.ones((1, 3), np.float32)}, "fp32")
    with pytest.raises(TkError, match="no parity thresholds"):
        compare("embedder", "model", a, a, "fp4")
