"""Figures of equality on cases with known answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.errors import TkError
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.parity.limits import THRESHOLDS, Measure
from tk.runtime.parity.over_all import over_all, relieve
from tk.runtime.parity.parts import run_parts
from tk.runtime.parity.rows import _assign, compare, row_cosine, row_difference


def test_row_cosine__closed_form_and_not_finite() -> None:
    a = np.asarray([[1.0, 0.0], [1.0, 0.0]])
    b = np.asarray([[2.0, 0.0], [1.0, 1.0]])
    assert row_cosine(a, b) == pytest.approx(np.sqrt(0.5))
    assert np.isnan(row_cosine(a, a * np.nan))


def test_features__of_another_length_are_refused() -> None:
    """The cosine of an encoder that gives twice its features is 1; the decoder is not fooled."""
    features = {"pixels": np.ones((1, 3, 4), np.float32)}
    twice = {"pixels": 2 * features["pixels"]}
    cosine, difference = compare("segmenter", "encoder", features, twice, "int8")
    assert cosine.passed and difference.value == pytest.approx(1.0) and not difference.passed
    # Between unit vectors both say the same.
    for precision, limits in THRESHOLDS.items():
        angle = np.arccos(limits["cosine"])
        a, b = np.asarray([[1.0, 0.0]]), np.asarray([[np.cos(angle), np.sin(angle)]])
        assert row_difference(a, b) == pytest.approx(limits["relative_difference"], rel=0.07)
        assert row_difference(a, b) <= limits["relative_difference"], precision


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


def _crowd(seed: int = 0, tokens: int = 5) -> dict[str, NDArray[np.float32]]:
    """Two pictures of 40 boxes, in pairs that overlap nearly wholly, as DETR queries do."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 200, (2, 20, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 60, (2, 20, 2))], axis=2)
    twins = np.concatenate([boxes, boxes + random.uniform(0, 0.02, boxes.shape)], axis=1)
    scores = random.uniform(0, 1, (2, 40, tokens))
    scores[:, :, -1] = 0.0
    return {"boxes": twins.astype(np.float32), "token_scores": scores.astype(np.float32)}


def _permuted(given: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    orders = [np.random.default_rng(row).permutation(40) for row in range(2)]
    return {
        name: np.stack([rows[order] for rows, order in zip(array, orders, strict=True)])
        for name, array in given.items()
    }


def _text(expected: dict[str, Any], found: dict[str, Any]) -> list[tuple[float, bool]]:
    measures = compare("detector", "model", expected, found, "fp32")
    assert [m.output for m in measures] == ["boxes", "token_scores"]
    assert [m.metric for m in measures] == ["box_iou", "score_difference"]
    return [(m.value, m.passed) for m in measures]


def test_text_detector__permuted_slots_are_equal_also_among_twins() -> None:
    (iou, same), (difference, equal) = _text(_crowd(), _permuted(_crowd()))
    assert iou > 0.995 and difference == 0.0 and same and equal


def test_text_detector__a_shifted_box_is_found_among_permuted_slots() -> None:
    found = _permuted(_crowd())
    found["boxes"][1, 7, [0, 2]] += 3
    (iou, passed), (_, equal) = _text(_crowd(), found)
    assert iou < 0.99 and not passed and equal


@pytest.mark.parametrize("side", [0, 1])
def test_text_detector__a_box_that_only_one_side_has_fails(side: int) -> None:
    pair = [_crowd(), _crowd()]
    pair[side]["token_scores"][0, 3] = 0.05  # below what counts as confident
    _, (difference, passed) = _text(*pair)
    assert difference > 0.05 and not passed


def test_text_detector__any_token_counts_not_only_the_best() -> None:
    found = _crowd()
    found["token_scores"][0, 0, np.argmin(found["token_scores"][0, 0])] += 0.01
    _, (difference, passed) = _text(_crowd(), found)
    assert difference == pytest.approx(0.01, abs=1e-6) and not passed


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", ["boxes", "token_scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_text_detector__not_finite_on_either_side_fails(name: str, side: int, value: float) -> None:
    pair = [_crowd(), _crowd()]
    pair[side][name][1, 39, 0] = value
    assert not any(passed for _, passed in _text(*pair))


def test_detector__a_box_without_area_equals_itself() -> None:
    flat = {
        "boxes": np.asarray([[[5, 5, 5, 9], [0, 0, 4, 4]]], np.float32),
        "scores": np.asarray([[[0.9], [0.8]]], np.float32),
    }
    assert all(m.passed for m in compare("detector", "model", flat, flat, "fp32"))
    moved = {**flat, "boxes": flat["boxes"] + np.asarray([1, 0, 1, 0], np.float32)}
    assert compare("detector", "model", flat, moved, "fp32")[0].value == 0.0


def test_matching__equals_the_best_assignment_of_scipy() -> None:
    rows = np.random.default_rng(1).uniform(0, 1, (12, 30)).astype(np.float32)
    rows[:, :5] += 1  # many rows want few columns
    mine = _assign(rows)
    best = linear_sum_assignment(rows, maximize=True)
    assert len(set(mine.tolist())) == 12
    assert rows[np.arange(12), mine].sum() == pytest.approx(rows[best].sum(), rel=1e-5)


class Doubler(Session):
    """Gives its input times two under another name."""

    def __init__(self, given: str, gives: str, rows: int | str) -> None:
        spec = Part(
            (TensorSpec(given, "float32", (rows, 2)),), (TensorSpec(gives, "float32", ("B", 2)),), 4
        )
        super().__init__(gives, "test", "fp32", spec)
        self.given, self.gives = given, gives

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        return {self.gives: np.asarray(inputs[self.given], np.float32) * 2}

    def _close(self) -> None:
        pass


def test_run_parts__each_part_runs_on_what_came_before() -> None:
    sessions = {"text": Doubler("ids", "features", "B"), "model": Doubler("features", "boxes", 1)}
    ids = np.asarray([[1, 2], [3, 4]], np.float32)
    outputs = run_parts("detector", sessions, {"ids": ids})
    np.testing.assert_array_equal(outputs["text"]["features"], ids * 2)
    np.testing.assert_array_equal(outputs["model"]["boxes"], ids[:1] * 4)  # takes one row
    with pytest.raises(TkError, match="do not fit together"):
        run_parts("detector", {"model": Doubler("other", "x", "B")}, {"ids": ids})


def test_decoder__not_finite_fails() -> None:
    good = {"logits": np.ones((2, 4, 4), np.float32), "iou": np.ones(2, np.float32)}
    for name in good:
        broken = {**good, name: good[name] * np.float32(np.nan)}
        assert not all(m.passed for m in compare("segmenter", "decoder", good, broken, "fp32"))


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


def _classified(logits: list[list[float]]) -> dict[str, NDArray[np.float32]]:
    values = np.asarray(logits, np.float32)
    return {"logits": values, "probabilities": softmax(values, axis=1)}


def test_classifier__closed_form() -> None:
    """Half a logit of four is an eighth; below a spread of 1 the error itself counts."""
    reference = _classified([[3, -1, 0], [0.1, 0.0, 0.05]])
    found = _classified([[3, -1, 0.5], [0.1, 0.0, 0.05]])
    logits, probabilities, agreement = compare("classifier", "model", reference, found, "int8")
    assert logits.value == pytest.approx(0.125) and logits.passed
    assert probabilities.value == pytest.approx(
        float(np.abs(reference["probabilities"] - found["probabilities"]).max())
    )
    assert agreement.value == 1.0
    near = _classified([[3, -1, 0], [0.1, 0.0, 0.25]])
    assert compare("classifier", "model", reference, near, "int8")[0].value == pytest.approx(0.2)


def test_classifier__a_class_in_doubt_may_turn_another_may_not() -> None:
    doubt, turned = _classified([[0.02, 0.0], [5, 0]]), _classified([[0.0, 0.02], [5, 0]])
    assert [m.value for m in compare("classifier", "model", doubt, turned, "int8")][2] == 1.0
    clear, wrong = _classified([[0.3, 0.0], [5, 0]]), _classified([[0.0, 0.3], [5, 0]])
    measure = compare("classifier", "model", clear, wrong, "int8")[2]
    assert measure.value == 0.5 and not measure.passed


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_classifier__not_finite_fails(output: str) -> None:
    reference = _classified([[1, 2, 3]])
    broken = {**reference, output: reference[output] * np.float32(np.nan)}
    measures = compare("classifier", "model", reference, broken, "bf16")
    assert not any(m.passed for m in measures)


def test_compare__other_shape_is_an_error() -> None:
    a = {"embedding": np.ones((2, 3), np.float32)}
    with pytest.raises(TkError, match="another shape"):
        compare("embedder", "model", a, {"embedding": np.ones((1, 3), np.float32)}, "fp32")
    with pytest.raises(TkError, match="no parity thresholds"):
        compare("embedder", "model", a, a, "fp4")


def overall(
    task: str, expected: Mapping[str, Any], found: Mapping[str, Any], precision: str
) -> list[Measure]:
    together = over_all(task, "model", precision)
    if together is None:
        return []
    for row in range(len(next(iter(expected.values())))):  # as several calls
        one, other = ({k: v[row : row + 1] for k, v in side.items()} for side in (expected, found))
        together.add(one, other)
    return together.measures()


def test_over_all__neighbours_of_embeddings() -> None:
    circle = np.deg2rad([0, 10, 90])
    right: Arrays = {"embedding": np.stack([np.cos(circle), np.sin(circle)], 1)}
    wrong: Arrays = {"embedding": right["embedding"][[0, 2, 1]]}  # 10 and 90 degrees change places
    kept, same = overall("embedder", right, right, "int8")
    assert (kept.metric, kept.value, kept.passed) == ("neighbours_kept", 1.0, True)
    assert (same.metric, same.value, same.passed) == ("same_neighbour", 1.0, True)
    kept, same = overall("embedder", right, wrong, "int8")
    assert kept.value < 0.95 and not kept.passed
    assert same.value == 0.0 and same.passed and same.threshold is None, "recorded, never judged"
    two: Arrays = {"embedding": right["embedding"][:2]}
    assert overall("embedder", two, two, "int8") == []
    assert overall("classifier", right, wrong, "int8") == []


def grid(pictures: int) -> dict[str, NDArray[np.float32]]:
    """Pictures with sixteen objects each, and four slots that show nothing."""
    x, y = np.meshgrid(np.arange(4) * 30.0, np.arange(4) * 30.0)
    corners = np.stack([x.ravel(), y.ravel()], 1)
    boxes = np.concatenate([np.concatenate([corners, corners + 20], 1), np.zeros((4, 4))])
    scores = np.concatenate([np.linspace(0.4, 0.9, 16), np.zeros(4)])[:, None]
    return {
        "boxes": np.repeat(boxes[None].astype(np.float32), pictures, 0),
        "scores": np.repeat(scores[None].astype(np.float32), pictures, 0),
    }


def test_over_all__one_object_of_many_that_moved_does_not_refuse_int8() -> None:
    """Its worst overlap is 0, and refused a detector that had lost no average precision."""
    reference, found = grid(4), grid(4)
    found["boxes"][2, 5] += 200
    rows = compare("detector", "model", reference, found, "int8")
    assert rows[0].value == 0.0 and not rows[0].passed
    together = overall("detector", reference, found, "int8")
    kept, iou, difference = together
    # one box on either side of 128 has no partner
    assert kept.value == pytest.approx(1 - 2 / 128) and kept.threshold == 0.95
    assert (iou.value, difference.value) == (1.0, 0.0)
    judged = relieve(rows, together)
    assert all(measure.passed for measure in [*judged, *together])
    assert judged[0].value == 0.0 and judged[0].threshold is None, "still on record"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_over_all__the_worst_box_decides_at_other_precisions(precision: str) -> None:
    reference, found = grid(4), grid(4)
    found["boxes"][2, 5] += 200
    together = overall("detector", reference, found, precision)
    assert [measure.threshold for measure in together] == [None] * 3
    rows = relieve(compare("detector", "model", reference, found, precision), together)
    assert not rows[0].passed


def test_over_all__lost_objects_other_boxes_and_other_scores_refuse_int8() -> None:
    reference = grid(4)
    lost, shrunk, pale = (grid(4) for _ in range(3))
    lost["scores"][:, 3:5] = 0.1  # two of sixteen in every picture: 8 of 120
    shrunk["boxes"][:, :16, 2:] -= 3  # each overlap is 0.72
    pale["scores"][:, :16] -= 0.06
    for found, metric in (
        (lost, "detections_kept"),
        (shrunk, "mean_box_iou"),
        (pale, "mean_score_difference"),
    ):
        failed = [m.metric for m in overall("detector", reference, found, "int8") if not m.passed]
        assert failed == [metric]


def test_over_all__not_finite_is_no_figure_and_nothing_found_says_nothing() -> None:
    reference, broken = grid(2), grid(2)
    broken["boxes"][0, 0, 0] = np.nan
    assert not any(measure.passed for measure in overall("detector", reference, broken, "int8"))
    empty = {**grid(2), "scores": np.zeros((2, 20, 1), np.float32)}
    assert overall("detector", empty, empty, "int8") == []


def test_over_all__few_boxes_may_lose_two_by_chance() -> None:
    reference, found = grid(1), grid(1)
    found["boxes"][0, 5] += 200
    assert all(measure.passed for measure in overall("detector", reference, found, "int8"))
    found["boxes"][0, 6] += 300
    assert not overall("detector", reference, found, "int8")[0].passed
    one = {name: array[:, 4:5] for name, array in grid(1).items()}  # of two there is no chance
    none = {**one, "scores": np.zeros((1, 1, 1), np.float32)}
    assert not overall("detector", one, none, "int8")[0].passed


def test_over_all__masks_of_int8_are_judged_by_their_mean() -> None:
    reference = {"logits": np.ones((10, 8, 8), np.float32), "iou": np.ones(10, np.float32)}
    found = {name: array.copy() for name, array in reference.items()}
    found["logits"][0, :4] = -1  # half of one mask of ten
    together = over_all("segmenter", "decoder", "int8")
    assert together is not None and together.measures() == []
    together.add(reference, found)
    (mean,) = together.measures()
    assert mean.metric == "mean_mask_iou" and mean.value == pytest.approx(0.95) and mean.passed
    rows = compare("segmenter", "decoder", reference, found, "int8")
    assert rows[0].value == 0.5 and not rows[0].passed
    assert relieve(rows, [mean])[0].passed and relieve(rows, [mean])[1].threshold == 0.05
    found["logits"][1:3] = -1
    together.add(reference, found)
    assert not together.measures()[0].passed
    found["logits"][9, 0, 0] = np.nan
    together.add(reference, found)
    assert not together.measures()[0].passed, "not finite"
