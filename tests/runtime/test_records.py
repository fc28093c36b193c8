from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from tk.runtime import records as records_module
from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask, decode_row_major
from tk.runtime.records import (
    Detection,
    ImageRecord,
    RankedClass,
    load_predictions,
    write_predictions,
)

SCHEMA = json.loads(
    Path(records_module.__file__).with_name("predictions.schema.json").read_text("utf-8")
)
MASK = BoxMask(2, 1, np.array([[1, 0, 1], [0, 1, 1]], np.bool_), 4, 6)


def detection(**changes: Any) -> Detection:
    values: dict[str, Any] = {
        "bbox_xyxy": (2, 1, 5, 3),
        "class_name": "Отвертка",
        "score_metric": 0.73,
        "score_vlm": 0.65,
        "vlm_class": "tool",
        "ranked": (RankedClass("Отвертка", 0.73), RankedClass("Ключ", 0.6)),
        "margin": 0.13,
        "runner_up": "Ключ",
        "mask": MASK,
    }
    return Detection(**{**values, **changes})


RECORDS = [
    ImageRecord("a/DSCN4946.JPG", 6, 4, (detection(), detection(mask=None))),
    ImageRecord("empty.png", 6, 4),
    ImageRecord("broken.png", None, None, error="not an image"),
]


def test_to_json__keys_and_values_of_the_seed() -> None:
    record = RECORDS[0].to_json()
    assert list(record) == ["image", "width", "height", "detections"]
    first = record["detections"][0]
    assert first == {
        "bbox_xyxy": [2, 1, 5, 3],
        "class": "Отвертка",
        "score_metric": 0.73,
        "score_vlm": 0.65,
        "vlm_class": "tool",
        "ranked": [{"name": "Отвертка", "score": 0.73}, {"name": "Ключ", "score": 0.6}],
        "margin": 0.13,
        "runner_up": "Ключ",
        "mask_rle": {"size": [4, 6], "counts": [8, 1, 1, 1, 4, 2, 7], "order": "row-major"},
    }
    seed = ["bbox_xyxy", "class", "score_metric", "score_vlm", "vlm_class", "ranked", "mask_rle"]
    assert [key for key in first if key in seed] == seed
    assert "mask_rle" not in record["detections"][1]


def test_to_json__error_only_when_there_is_one() -> None:
    assert "error" not in RECORDS[1].to_json()
    assert RECORDS[2].to_json() == {
        "image": "broken.png",
        "width": None,
        "height": None,
        "detections": [],
        "error": "not an image",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, np.float32("nan"), None])
def test_to_json__what_is_no_number_is_null(value: float | None) -> None:
    ranked = (RankedClass("Ключ", value),)
    one = detection(score_metric=value, score_vlm=value, margin=value, ranked=ranked).to_json()
    assert one["score_metric"] is one["score_vlm"] is one["margin"] is None
    assert one["ranked"] == [{"name": "Ключ", "score": None}]


def test_to_json__numpy_values_become_plain_ones() -> None:
    box = tuple(np.array([2, 1, 5, 3], np.float32))
    one = detection(bbox_xyxy=box, score_metric=np.float32(0.1)).to_json()
    assert [type(edge) for edge in one["bbox_xyxy"]] == [int] * 4
    assert type(one["score_metric"]) is float and one["score_metric"] == 0.1
    json.dumps(ImageRecord("a.jpg", np.int64(6), np.int64(4)).to_json())  # type: ignore[arg-type]


def test_to_line__file_name_that_is_not_utf8() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    line = ImageRecord(name, 1, 1, error=name).to_line()
    assert json.loads(line)["image"] == "caf\\udce9.jpg" and b"\n" not in line


def test_schema__is_valid_and_knows_every_key_written() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    image = RECORDS[0].to_json()
    one = image["detections"][0]
    definitions = SCHEMA["$defs"]
    known = set(definitions["image"]["properties"])
    assert {*image, "error"} == known
    assert set(one) == set(definitions["detection"]["properties"])
    assert set(one["mask_rle"]) == set(definitions["mask"]["properties"])


def test_write_predictions__round_trip(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    lines = [record.to_line() for record in RECORDS]
    write_predictions(path, [lines[0] + b"\n", b"\n", *lines[1:]])
    loaded = load_predictions(path)
    Draft202012Validator(SCHEMA).validate(loaded)
    assert loaded == [record.to_json() for record in RECORDS] == json.loads(path.read_bytes())
    rle = loaded[0]["detections"][0]["mask_rle"]
    np.testing.assert_array_equal(decode_row_major(rle["size"], rle["counts"]), MASK.full())


def test_write_predictions__no_records(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.json", [])
    assert load_predictions(tmp_path / "predictions.json") == []


def test_write_predictions__failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    write_predictions(path, [RECORDS[1].to_line()])
    before = path.read_bytes()

    def lines() -> Iterator[bytes]:
        yield RECORDS[0].to_line()
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_predictions(path, lines())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_write_predictions__holds_one_line_at_a_time(tmp_path: Path) -> None:
    """A line is written before the next but one is asked for: nothing is collected."""
    alive = 0
    most = 0

    class Line(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def lines() -> Iterator[bytes]:
        nonlocal alive, most
        for _ in range(100):
            alive += 1
            most = max(most, alive)
            yield Line(b'{"image": "a", "detections": []}')

    write_predictions(tmp_path / "predictions.json", lines())
    assert most <= 3 and len(load_predictions(tmp_path / "predictions.json")) == 100


def test_load_predictions__reads_the_seeds_files(tmp_path: Path) -> None:
    record = RECORDS[0].to_json()
    for key in ("width", "height"):
        del record[key]
    for one in record["detections"]:
        del one["margin"], one["runner_up"]
    assert load(tmp_path, [record]) == [record]


def load(folder: Path, value: Any) -> list[dict[str, Any]]:
    path = folder / "predictions.json"
    path.write_text(json.dumps(value), "utf-8")
    return load_predictions(path)


def change(*keys: Any, to: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return apply


def lack(*keys: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return apply


DET = (0, "detections", 0)
BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (change(1, to="a.jpg"), "image 1"),
    (lack(0, "image"), "image 0 lacks the key `image`"),
    (lack(0, "detections"), "(a/DSCN4946.JPG) lacks the key `detections`"),
    (change(0, "image", to=3), "key `image`"),
    (change(0, "width", to=0), "key `width`"),
    (change(0, "height", to="4"), "key `height`"),
    (change(0, "detections", to={}), "key `detections`"),
    (change(2, "error", to=None), "image 2 (broken.png), key `error`"),
    (change(*DET, to=[]), "detection 0"),
    (change(*DET, "bbox_xyxy", to=[1, 2, 3]), "key `bbox_xyxy`"),
    (change(*DET, "bbox_xyxy", to=[1, 2, 3, 4.5]), "key `bbox_xyxy`"),
    (change(*DET, "bbox_xyxy", to=[1, 2, 3, True]), "key `bbox_xyxy`"),
    (lack(*DET, "class"), "lacks the key `class`"),
    (change(*DET, "class", to=None), "key `class`"),
    (change(*DET, "score_metric", to="0.7"), "key `score_metric`"),
    (change(*DET, "score_vlm", to=True), "key `score_vlm`"),
    (change(*DET, "vlm_class", to=1), "key `vlm_class`"),
    (change(*DET, "margin", to=[]), "key `margin`"),
    (change(*DET, "runner_up", to=0), "key `runner_up`"),
    (change(*DET, "ranked", to=None), "key `ranked`"),
    (change(*DET, "ranked", 1, to="Ключ"), "detection 0, ranked 1"),
    (lack(*DET, "ranked", 1, "score"), "ranked 1 lacks the key `score`"),
    (change(*DET, "mask_rle", to=None), "key `mask_rle`"),
    (lack(*DET, "mask_rle", "order"), "mask_rle lacks the key `order`"),
    (change(*DET, "mask_rle", "order", to="F"), "key `order`"),
    (change(*DET, "mask_rle", "size", to=[4]), "mask_rle: the size"),
    (change(*DET, "mask_rle", "counts", to="abc"), "key `counts`"),
    (change(*DET, "mask_rle", "counts", to=[25, -1]), "mask_rle: the runs"),
    (change(*DET, "mask_rle", "counts", to=[12.5, 11.5]), "mask_rle: the runs"),
]


@pytest.mark.parametrize(("breaks", "message"), BROKEN)
def test_load_predictions__says_where_as_the_schema_does(
    breaks: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    value = copy.deepcopy([record.to_json() for record in RECORDS])
    Draft202012Validator(SCHEMA).validate(value)
    breaks(value)
    assert not Draft202012Validator(SCHEMA).is_valid(value)
    with pytest.raises(TkError) as caught:
        load(tmp_path, value)
    assert message in str(caught.value)


def test_load_predictions__runs_must_fill_the_image(tmp_path: Path) -> None:
    value = [RECORDS[0].to_json()]
    value[0]["detections"][0]["mask_rle"]["counts"] = [23]
    with pytest.raises(TkError, match="detection 0, mask_rle: the runs of a mask do not fill"):
        load(tmp_path, value)


@pytest.mark.parametrize("text", ["{}", "[", "null"])
def test_load_predictions__not_a_list(text: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(TkError):
        load_predictions(path)
    with pytest.raises(TkError, match="does not exist"):
        load_predictions(tmp_path / "none.json")
