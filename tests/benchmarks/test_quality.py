"""Quality against ground truth: closed form, and AP50 against pycocotools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tk.benchmarks.quality import Quality, Share, judge
from tk.runtime.errors import TkError
from tk.runtime.files import write_json
from tk.runtime.masks import BoxMask, coco_rle, rle_row_major

SIDE = 100
Box = tuple[int, int, int, int]


def filled(box: Box) -> BoxMask:
    x0, y0, x1, y1 = box
    return BoxMask(x0, y0, np.ones((y1 - y0, x1 - x0), np.bool_), SIDE, SIDE)


def detection(box: Box, name: str, score: float, mask: Box | None = None) -> dict[str, Any]:
    counts = rle_row_major(filled(mask or box))
    return {
        "bbox_xyxy": list(box),
        "class": name,
        "score_metric": 0.5,
        "score_vlm": score,
        "vlm_class": "tool",
        "ranked": [],
        "mask_rle": {"size": [SIDE, SIDE], "counts": counts, "order": "row-major"},
    }


def write_truth(file: Path, truths: dict[str, list[tuple[Box, str]]]) -> Path:
    """A COCO file with masks that fill their boxes."""
    names = sorted({name for things in truths.values() for _, name in things})
    annotations: list[dict[str, Any]] = []
    for index, things in enumerate(truths.values()):
        for box, name in things:
            x0, y0, x1, y1 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": names.index(name) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": coco_rle(filled(box)),
                }
            )
    images = [
        {"id": index, "file_name": name, "width": SIDE, "height": SIDE}
        for index, name in enumerate(truths)
    ]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    write_json(file, {"images": images, "annotations": annotations, "categories": categories})
    return file


def judged(folder: Path) -> Quality:
    """Two pictures: a right hit, a wrong class, an unknown hit, a miss and a false alarm."""
    truth = write_truth(
        folder / "annotations.json",
        {
            "a.jpg": [((0, 0, 20, 20), "axe"), ((40, 0, 60, 20), "saw")],
            "ключи/b.jpg": [((0, 0, 20, 20), "saw"), ((50, 50, 90, 90), "axe")],
            "not annotated.jpg": [((0, 0, 20, 20), "saw")],
        },
    )
    records = [
        {
            "image": "a.jpg",
            "detections": [
                detection((0, 0, 20, 20), "axe", 0.9),
                # Mask of half the object, and the wrong class.
                detection((40, 0, 60, 20), "axe", 0.8, mask=(40, 0, 60, 10)),
            ],
        },
        {
            "image": "ключи/b.jpg",
            "detections": [
                detection((0, 0, 20, 16), "unknown", 0.7),
                detection((0, 60, 20, 80), "saw", 0.95),
            ],
        },
        {"image": "no truth.jpg", "detections": [detection((0, 0, 20, 20), "axe", 0.99)]},
    ]
    return judge(records, truth)


def test_judge__counts_in_closed_form(tmp_path: Path) -> None:
    quality = judged(tmp_path)

    assert (quality.images, quality.objects, quality.detections) == (2, 4, 4)
    assert quality.recall == Share(3, 4)
    assert quality.precision == Share(3, 4)
    assert quality.class_accuracy == Share(1, 3)
    assert quality.unknown == Share(1, 4)
    assert quality.mask_iou == pytest.approx((1.0 + 0.5 + 0.8) / 3)
    low, high = quality.mask_iou_interval
    assert 0.5 <= low < quality.mask_iou < high <= 1.0


def test_judge__ap50_in_closed_form(tmp_path: Path) -> None:
    # By score: false, hit, hit, hit; 4 objects. Best precision at a recall of up to 3/4 is 3/4,
    # which covers the recalls 0.00 to 0.75: 76 of 101 points.
    assert judged(tmp_path).ap50 == pytest.approx(76 * 0.75 / 101)


def test_share__json_has_the_wilson_interval() -> None:
    value = Share(8, 10).to_json()
    assert value["value"] == 0.8
    # Wilson (1927) at z = 1.959964: (0.4902, 0.9433).
    assert value["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert Share(0, 0).to_json()["value"] is None


def test_judge__nothing_found_is_zero_not_an_error(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "t.json", {"a.jpg": [((0, 0, 20, 20), "axe")]})
    quality = judge([{"image": "a.jpg", "detections": []}], truth)
    assert (quality.recall, quality.ap50) == (Share(0, 1), 0.0)
    assert np.isnan(quality.mask_iou)
    assert "none to judge" in "\n".join(quality.lines())


def test_judge__other_pictures_are_refused(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "t.json", {"a.jpg": [((0, 0, 20, 20), "axe")]})
    with pytest.raises(TkError, match="other pictures"):
        judge([{"image": "b.jpg", "detections": []}], truth)


@pytest.mark.parametrize("seed", range(4))
def test_judge__ap50_is_that_of_pycocotools(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)

    def jitter(box: Box) -> Box:
        x0, y0, x1, y1 = np.clip(np.asarray(box) + random.integers(-6, 7, 4), 0, SIDE).tolist()
        return x0, y0, max(x1, x0 + 4), max(y1, y0 + 4)

    truths: dict[str, list[tuple[Box, str]]] = {}
    records = []
    for index in range(8):
        corners = random.integers(0, 70, (5, 2)).tolist()
        boxes = [(x, y, x + 25, y + 20) for x, y in corners]
        truths[f"{index}.jpg"] = [(box, "axe") for box in boxes]
        found = [*boxes[:4], (60, 60, 80, 80)]
        detections = [detection(jitter(box), "axe", random.random()) for box in found]
        records.append({"image": f"{index}.jpg", "detections": detections})
    file = write_truth(tmp_path / "t.json", truths)

    assert judge(records, file).ap50 == pytest.approx(coco_ap50(file, records), abs=1e-9)


def coco_ap50(file: Path, records: list[dict[str, Any]]) -> float:
    results = []
    for index, record in enumerate(records):
        for one in record["detections"]:
            x0, y0, x1, y1 = one["bbox_xyxy"]
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append(
                {"image_id": index, "category_id": 1, "bbox": box, "score": one["score_vlm"]}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])
