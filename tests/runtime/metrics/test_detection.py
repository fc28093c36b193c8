from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tk.runtime.boxes import Boxes
from tk.runtime.metrics.detection import average_precision, mean_average_precision

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Prediction = tuple[Boxes, Floats, Labels]
Truth = tuple[Boxes, Labels]


def scenes(seed: int, images: int, classes: int) -> tuple[list[Prediction], list[Truth]]:
    """True boxes, and predictions that are shaken copies of them, doubles and false alarms."""
    generator = np.random.default_rng(seed)
    predictions, truths = [], []
    for _ in range(images):
        corner = generator.uniform(0, 80, (int(generator.integers(0, 7)), 2))
        size = generator.uniform(10, 40, corner.shape)
        boxes = np.hstack([corner, corner + size]).astype(np.float32)
        labels = generator.integers(0, classes, len(boxes))
        source = np.repeat(np.arange(len(boxes)), 2)
        spread = generator.uniform(0, 6, (len(source), 1))
        shaken = boxes[source] + spread * generator.standard_normal((len(source), 4))
        shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)
        own = np.where(generator.random(len(source)) < 0.8, labels[source], 0)
        scores = generator.integers(1, 30, len(source)).astype(np.float32)  # with ties
        predictions.append((shaken.astype(np.float32), scores, own.astype(np.int64)))
        truths.append((boxes, labels))
    return predictions, truths


def coco_precision(predictions: list[Prediction], truths: list[Truth], iou: float) -> float:
    """Mean average precision by pycocotools."""

    def rows(image: int, boxes: Boxes, labels: Labels) -> list[dict[str, Any]]:
        return [
            {
                "image_id": image,
                "category_id": int(label),
                "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
            }
            for box, label in zip(boxes, labels, strict=True)
        ]

    true = [row for i, (boxes, labels) in enumerate(truths) for row in rows(i, boxes, labels)]
    for number, row in enumerate(true, 1):
        row.update(id=number, iscrowd=0, area=row["bbox"][2] * row["bbox"][3])
    found = []
    for i, (boxes, scores, labels) in enumerate(predictions):
        for row, score in zip(rows(i, boxes, labels), scores, strict=True):
            found.append({**row, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "annotations": true,
            "categories": [{"id": i} for i in sorted({row["category_id"] for row in true})],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([iou])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision.mean())


def without_labels(
    predictions: list[Prediction], truths: list[Truth]
) -> tuple[list[tuple[Boxes, Floats]], list[Boxes]]:
    return [(boxes, scores) for boxes, scores, _ in predictions], [boxes for boxes, _ in truths]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.5, 0.75, 0.9])
def test_average_precision__equals_cocoeval(seed: int, iou: float) -> None:
    predictions, truths = scenes(seed, 30, 1)
    ours = average_precision(*without_labels(predictions, truths), iou)
    assert 0.0 < ours < 1.0
    assert ours == pytest.approx(coco_precision(predictions, truths, iou), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_mean_average_precision__equals_cocoeval(seed: int, iou: float) -> None:
    predictions, truths = scenes(seed, 40, 4)
    ours = mean_average_precision(predictions, truths, iou)
    assert ours == pytest.approx(coco_precision(predictions, truths, iou), abs=1e-9)
    assert ours != pytest.approx(average_precision(*without_labels(predictions, truths), iou))


BOX = np.array([[0, 0, 10, 10]], np.float32)
NONE = np.zeros((0, 4), np.float32)
ONE, NO_SCORES = np.ones(1, np.float32), np.zeros(0, np.float32)


@pytest.mark.parametrize(
    ("predictions", "truths", "expected"),
    [
        ([(BOX, ONE)], [BOX], 1.0),
        ([(BOX + 50, ONE)], [BOX], 0.0),
        ([(NONE, NO_SCORES)], [BOX], 0.0),
        ([(BOX, ONE), (NONE, NO_SCORES)], [BOX, BOX], 51 / 101),
        ([(BOX, ONE), (BOX, 2 * ONE)], [BOX, NONE], 0.5),
    ],
)
def test_average_precision__small_cases(
    predictions: list[tuple[Boxes, Floats]], truths: list[Boxes], expected: float
) -> None:
    assert average_precision(predictions, truths) == pytest.approx(expected)


def test_average_precision__undefined_without_true_boxes() -> None:
    assert np.isnan(average_precision([(BOX, ONE)], [NONE]))
    assert np.isnan(average_precision([], []))
    assert np.isnan(mean_average_precision([], []))
