"""Figures, verdicts and tables of predictions that are known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tk.train.distill.compare import against, one_answer
from tk.train.distill.models import HEADS, QUESTIONS
from tk.train.distill.results import (
    Figure,
    Predictions,
    Row,
    accuracy_figure,
    compare,
    measure_row,
    verdict,
)
from tk.train.distill.split import read_split
from tk.train.distill.tables import DASH, HEADER, cells, markdown, percent, write_tables

LABELS = np.arange(200) % 4


def said(right: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(S, N, C) probabilities: the true class where right, else the next; 0.7 sure."""
    answers = np.where(right, LABELS, (LABELS + 1) % 4)
    found = np.full((*right.shape, 4), 0.1, np.float32)
    np.put_along_axis(found, answers[..., None], 0.7, axis=2)
    return found


def right(seed: int, runs: int, share: float) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((runs, len(LABELS))) < share


@pytest.fixture
def predictions() -> Predictions:
    models = {
        "teacher": right(0, 5, 0.9),
        "student": right(1, 5, 0.9),
        "student_no_kd": right(2, 5, 0.6),
        "linear": right(3, 1, 0.85),
    }
    files = tuple(f"c/{i}.png" for i in range(len(LABELS)))
    return Predictions(LABELS, files, {name: said(found) for name, found in models.items()})


GROUPS = [str(i // 2) for i in range(len(LABELS))]


def test_accuracy__interval_over_seeds_is_students(predictions: Predictions) -> None:
    found = accuracy_figure(LABELS, predictions.models["teacher"])
    values = predictions.right("teacher").mean(axis=1)
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.seeds == pytest.approx(values) and found.interval == "seeds"


def test_accuracy__of_a_fit_without_randomness_is_wilsons(predictions: Predictions) -> None:
    found = accuracy_figure(LABELS, predictions.models["linear"])
    hits = int(predictions.right("linear").sum())
    theirs = stats.binomtest(hits, 200).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.interval == "patches" and percent(found).endswith("†")


def test_compare__what_is_better_and_what_is_not_shown(predictions: Predictions) -> None:
    better = compare(predictions, GROUPS, "student", "student_no_kd", "helps")
    assert better.low > 0 and better.verdict.startswith("better (+") and better.p_mcnemar < 1e-6
    worse = compare(predictions, GROUPS, "student_no_kd", "student", "helps")
    assert worse.verdict.startswith("worse (-") and worse.difference == -better.difference
    same = compare(predictions, GROUPS, "student", "teacher", "as good")
    assert same.low < 0 < same.high and same.verdict.startswith("no difference shown")
    # A single fit is compared with every run of the other.
    single = compare(predictions, GROUPS, "linear", "teacher", "as good")
    means = [100 * predictions.right(name).mean() for name in ("linear", "teacher")]
    assert single.difference == pytest.approx(means[0] - means[1])


def test_compare__different_numbers_of_runs(predictions: Predictions) -> None:
    models = predictions.models | {"image_student": predictions.models["teacher"][:2]}
    more = Predictions(LABELS, predictions.files, models)
    found = compare(more, GROUPS, "image_student", "teacher", "as good")
    few, all_runs = (more.right(name).mean() for name in ("image_student", "teacher"))
    assert found.difference == pytest.approx(100 * (few - all_runs)) and found.low < found.high


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 2, "better"),
        (-2, -0.1, "worse"),
        (0, 2, "no difference shown"),
        (-2, 0, "no difference shown"),
        (0, 0, "no difference shown"),
    ],
)
def test_verdict__an_interval_with_0_shows_nothing(low: float, high: float, words: str) -> None:
    assert verdict((low + high) / 2, low, high).startswith(words)


def test_questions__are_about_models_that_exist() -> None:
    names = {model.name for model in HEADS} | {"image_student", "image_student_no_kd"}
    assert {name for a, b, _ in QUESTIONS for name in (a, b)} <= names
    assert {model.reference for model in HEADS} <= names | {""}


def row(predictions: Predictions, name: str, parameters: int) -> Row:
    return measure_row(
        predictions,
        name,
        title=name.title(),
        kind="head",
        checkpoint=f"models/{name}/seed0.pth",
        backbone="backbone.pth",
        parameters=parameters,
        compression=None,
        improvement=None,
    )


def test_one_answer__names_who_learned_nothing(predictions: Predictions) -> None:
    runs = predictions.models["student"].copy()
    runs[3] = 0
    runs[3, :, 2] = 1
    models = {"teacher": predictions.models["teacher"], "student": runs}
    lazy = Predictions(LABELS, predictions.files, models)
    found = one_answer(lazy, [row(lazy, name, 1) for name in models])
    assert found == ["Student gives every patch the same class, in one run at least"]


def test_cells__in_the_words_of_the_seed(predictions: Predictions) -> None:
    teacher, student = row(predictions, "teacher", 57796), row(predictions, "student", 26852)
    assert cells(teacher)[3:6] == (DASH, DASH, DASH)
    found = cells(against(student, teacher, smaller=True))
    points = 100 * (student.accuracy.mean - teacher.accuracy.mean)
    assert found[1] == "26852" and found[4] == "2.2x" and found[5] == f"{points:+.2f}%"
    assert cells(against(student, teacher, smaller=False))[4] == DASH
    assert HEADER[:6] == (
        *("Model", "Parameters", "Accuracy"),
        *("Inference Time", "Compression", "Improvement"),
    )
    assert percent(Figure(0.9432, 0.939, 0.9474, (), "seeds")) == "94.32% [93.90, 94.74]"


def test_markdown__columns_are_aligned() -> None:
    lines = markdown(("a", "bb"), [("long", "—"), ("x", "1")]).splitlines()
    assert lines == ["| a    | bb |", "| ---- | -- |", "| long | —  |", "| x    | 1  |"]


def test_tables__csv_reads_back(predictions: Predictions, tmp_path: Path) -> None:
    rows = [row(predictions, "teacher", 57796), row(predictions, "linear", 1540)]
    same = compare(predictions, GROUPS, "teacher", "linear", "is it better")
    write_tables(tmp_path, ["яма", "b", "c", "d"], predictions, rows, [same], ["few patches"])
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [int(line["parameters"]) for line in found] == [57796, 1540]
    assert float(found[0]["accuracy"]) == rows[0].accuracy.mean
    with open(tmp_path / "detailed_metrics.csv", encoding="utf-8", newline="") as file:
        details = list(csv.DictReader(file))
    assert len(details) == (5 + 1) * 4 and details[0]["class"] == "яма"
    hits = predictions.right("teacher")[0][LABELS == 0].mean()
    assert float(details[0]["recall"]) == pytest.approx(hits)
    text = (tmp_path / "results_table.md").read_text("utf-8")
    assert f"Is it better? Teacher against Linear: {same.verdict}, McNemar p" in text
    assert "Mind: few patches" in text and "tk bench table RUN" in text


def test_read_split__damaged(tmp_path: Path) -> None:
    from tk.runtime.errors import TkError

    (tmp_path / "class_info.json").write_text('{"classes": []}')
    with pytest.raises(TkError, match="does not describe the rows of features"):
        read_split(tmp_path / "class_info.json")
