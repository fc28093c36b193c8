"""What remains of the boxes that a detector found. No PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests import tiny_bundles

from tk.runtime.bundle import Bundle
from tk.runtime.heads.detector import CompactDetector, DetectorOptions

LARGE, SMALL, ELSEWHERE = (0, 0, 40, 40), (0, 0, 38, 38), (50, 50, 60, 60)
BOXES = np.asarray([LARGE, SMALL, ELSEWHERE], np.float32)
SCORES = np.asarray([0.4, 0.9, 0.6], np.float32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (DetectorOptions(), [1, 2]),
        (DetectorOptions(nms_by="area"), [2, 0]),
        (DetectorOptions(nms_iou=1.0), [1, 2, 0]),
        (DetectorOptions(nms_by="area", nms_iou=1.0), [1, 2, 0]),
        (DetectorOptions(most=1), [1]),
        (DetectorOptions(nms_by="area", most=1), [2]),
    ],
)
def test_choose__by_score_or_by_area_best_score_first(
    options: DetectorOptions, expected: list[int]
) -> None:
    assert options.choose(BOXES, SCORES).tolist() == expected
    none = options.choose(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert none.shape == (0,)


def test_detect__a_box_without_area_or_without_number_is_dropped(tiny_world: Path) -> None:
    detector = CompactDetector(
        Bundle.open(tiny_world / "bundles" / "detector"), DetectorOptions(box_threshold=0.0)
    )
    dark = np.zeros((64, 64, 3), np.uint8)
    raw = detector.session.run({"image": dark[None]})["boxes"][0]
    assert raw[0, 0] > raw[0, 2]  # the graph turns the box of nothing inside out
    found = detector.detect([dark, tiny_bundles.blob((255, 0, 0))])
    assert [len(own) for own in found] == [0, 1]

    class NotANumber(type(detector.session)):  # type: ignore[misc]
        def _run(self, inputs):  # type: ignore[no-untyped-def]
            outputs = super()._run(inputs)
            return {**outputs, "boxes": np.full_like(outputs["boxes"], np.nan)}

    detector.session.__class__ = NotANumber
    assert [len(own) for own in detector.detect([tiny_bundles.blob((255, 0, 0))])] == [0]
