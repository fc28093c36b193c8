"""Equality of two runs on records whose figures are known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tk.benchmarks.equality import compare_records
from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask, rle_row_major

Record = dict[str, Any]
SIDE = 40


def detection(box: tuple[int, int, int, int], name: str = "saw", score: float = 0.9) -> Record:
    """A detection whose mask fills its box."""
    x0, y0, x1, y1 = box
    mask = BoxMask(x0, y0, np.ones((y1 - y0, x1 - x0), np.bool_), SIDE, SIDE)
    return {
        "bbox_xyxy": list(box),
        "class": name,
        "score_metric": score,
        "score_vlm": 0.8,
        "vlm_class": "tool",
        "ranked": [],
        "mask_rle": {"size": [SIDE, SIDE], "counts": rle_row_major(mask), "order": "row-major"},
    }


def record(name: str, *detections: Record) -> Record:
    return {"image": name, "width": SIDE, "height": SIDE, "detections": list(detections)}


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30)


def test_compare_records__same_in_another_order_is_equal() -> None:
    reference = [record("1", detection(A, "axe"), detection(B)), record("2", detection(C))]
    found = [record("2", detection(C)), record("1", detection(B), detection(A, "axe"))]

    equality = compare_records(reference, found)

    assert equality.problems == []
    assert (equality.matched, equality.matched_share, equality.class_agreement) == (3, 1.0, 1.0)
    assert (equality.min_box_iou, equality.min_mask_iou) == (1.0, 1.0)


def test_compare_records__figures_in_closed_form() -> None:
    # B is moved by 2 of 10 columns: IoU 8 / 12. C is only in the reference.
    moved = detection((22, 0, 32, 10), "axe", 0.6)
    equality = compare_records(
        [record("1", detection(A), detection(B), detection(C))],
        [record("1", detection(A), moved)],
    )
    assert (equality.reference, equality.candidate, equality.matched) == (3, 2, 2)
    assert equality.matched_share == pytest.approx(2 / 3)
    assert equality.min_box_iou == pytest.approx(2 / 3)
    assert equality.mean_box_iou == pytest.approx(5 / 6)
    assert equality.mean_mask_iou == pytest.approx(5 / 6)
    assert equality.class_agreement == 0.5
    assert equality.max_score_difference == pytest.approx(0.3)
    assert len(equality.problems) == 3


def test_compare_records__a_mask_can_differ_where_the_box_does_not() -> None:
    hollow = detection(A)
    pixels = np.ones((10, 10), np.bool_)
    pixels[2:8, 2:8] = False
    hollow["mask_rle"]["counts"] = rle_row_major(BoxMask(0, 0, pixels, SIDE, SIDE))

    equality = compare_records([record("1", detection(A))], [record("1", hollow)])

    assert equality.mean_box_iou == 1.0
    assert equality.mean_mask_iou == pytest.approx(0.64)
    assert equality.problems == ["mean mask IoU 0.6400, needs 0.99"]


def test_compare_records__nothing_found_proves_nothing() -> None:
    (problem,) = compare_records([record("1")], [record("1")]).problems
    assert "nothing was compared" in problem


def test_compare_records__nothing_in_common_fails_every_figure() -> None:
    equality = compare_records([record("1", detection(A))], [record("1", detection(B))])
    assert equality.matched_share == 0.0
    assert len(equality.problems) == 3  # NaN is no pass


def test_compare_records__a_picture_only_one_could_read() -> None:
    good = record("1", detection(A))
    (problem,) = compare_records(
        [good, record("2")], [good, {**record("2"), "error": "damaged"}]
    ).problems
    assert "1 pictures could be read by one chain only" in problem


@pytest.mark.parametrize("names", [["1"], ["1", "3"], ["1", "1"], ["1", "2", "3"]])
def test_compare_records__other_pictures_are_refused(names: list[str]) -> None:
    with pytest.raises(TkError, match="not of the same pictures"):
        compare_records([record("1"), record("2")], [record(name) for name in names])


def test_compare_records__without_masks_is_refused() -> None:
    bare = detection(A)
    del bare["mask_rle"]
    with pytest.raises(TkError, match="no mask"):
        compare_records([record("1", detection(A))], [record("1", bare)])
