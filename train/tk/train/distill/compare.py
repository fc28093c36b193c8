"""Step 7: measure all models and write the table, the pictures and `results.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tk.runtime.errors import TkError
from tk.runtime.files import write_bytes, write_json
from tk.runtime.metrics.calibration import expected_calibration_error, reliability
from tk.runtime.metrics.classification import confusion_matrix
from tk.train.classifier.checkpoint import load_classifier, load_encoder
from tk.train.classifier.heads import count_parameters
from tk.train.distill.arrays import write_npz
from tk.train.distill.layout import MODELS, PREDICTIONS
from tk.train.distill.models import HEADS, QUESTIONS
from tk.train.distill.pictures import draw_confusions, draw_reliability
from tk.train.distill.results import (
    Predictions,
    Row,
    compare,
    measure_row,
    read_predictions,
    to_json,
)
from tk.train.distill.split import Items
from tk.train.distill.student import STUDENT, student_facts, with_students
from tk.train.distill.tables import write_tables

RESULTS = "results.json"
FILES = (
    *(RESULTS, "results.csv", "detailed_metrics.csv", "results_table.md", "results_table.png"),
    *("confusion_matrices.npz", "all_confusion_matrices.png", "reliability.png"),
)


def compare_models(
    run: Path,
    items: Items,
    dataset: str,
    settings: dict[str, Any],
    students: dict[str, list[Path]],
) -> None:
    """Write all of `FILES`.

    Args:
        dataset: what to call the data.
        settings: what the models were trained with, for `results.json`.
        students: row -> run folders of image models.

    Raises:
        TkError: heads or students were measured on other test patches than those of `items`.
    """
    heads = read_predictions(run / PREDICTIONS)
    _check_split(heads, items)
    predictions = with_students(heads, items, students)
    rows = head_rows(run, predictions)
    rows += chain_rows(run, predictions, students, rows)
    group_of = dict(zip(items.files, items.groups, strict=True))
    groups = [group_of[file] for file in predictions.files]
    comparisons = [
        compare(predictions, groups, a, b, question)
        for a, b, question in QUESTIONS
        if {a, b} <= predictions.models.keys()
    ]
    warnings = [*items.warnings, *one_answer(predictions, rows)]
    write_tables(run, items.classes, predictions, rows, comparisons, warnings)
    _draw(run, items.classes, predictions, rows)
    about = {**_split(items), "settings": settings, "warnings": warnings}
    write_json(
        run / RESULTS,
        {
            "dataset": dataset,
            **about,
            "rows": [to_json(row) for row in rows],
            "comparisons": [to_json(found) for found in comparisons],
        },
    )


def _check_split(predictions: Predictions, items: Items) -> None:
    test = items.rows("test")
    files = tuple(items.files[row] for row in test)
    if predictions.files == files and np.array_equal(predictions.labels, items.labels[test]):
        return
    raise TkError(
        "the heads were measured on other test patches than those of class_info.json",
        expected=f"{len(files)} patches",
        found=f"{len(predictions.files)} patches, {len(set(predictions.files) & set(files))} of "
        "them the same",
        fix="train them on this split: the same command without --step, or --step train before it",
    )


def one_answer(predictions: Predictions, rows: Sequence[Row]) -> list[str]:
    """Say which models have learned nothing but the commonest class."""
    return [
        f"{row.title} gives every patch the same class, in one run at least"
        for row in rows
        if (np.ptp(predictions.models[row.name].argmax(axis=2), axis=1) == 0).any()
    ]


def head_rows(run: Path, predictions: Predictions) -> list[Row]:
    """Rows of the heads, in the order of the table."""
    rows: dict[str, Row] = {}
    for model in HEADS:
        if model.name not in predictions.models:
            continue
        file = f"{MODELS}/{model.name}/seed{predictions.median(model.name)}.pth"
        parameters = count_parameters(load_classifier(run / file).model)
        reference = rows.get(model.reference)
        found = measure_row(
            predictions,
            model.name,
            title=model.title,
            kind="head",
            checkpoint=file,
            backbone=model.backbone,
            parameters=parameters,
            compression=None,
            improvement=None,
            reference=model.reference,
        )
        rows[model.name] = against(found, reference, smaller=model.reference == "teacher")
    return list(rows.values())


def chain_rows(
    run: Path, predictions: Predictions, students: dict[str, list[Path]], heads: Sequence[Row]
) -> list[Row]:
    """Rows of image models; compression is that of the whole chain of backbone and teacher."""
    if not students:
        return []
    teacher = next(row for row in heads if row.name == "teacher")
    encoder, _ = load_encoder(run / teacher.backbone)
    whole = replace(teacher, parameters=teacher.parameters + count_parameters(encoder))
    rows = []
    for name, folders in students.items():
        folder = folders[predictions.median(name)]
        facts = student_facts(folder)
        how = "Distilled" if name == STUDENT else "Labels Alone"
        row = measure_row(
            predictions,
            name,
            title=f"{facts['model_id'].partition('.')[0]} from Pixels ({how})",
            kind="chain",
            checkpoint=f"{folder.name}/{facts['checkpoint']}",
            backbone="",
            parameters=int(facts["parameters"]),
            compression=None,
            improvement=None,
            reference="teacher",
            mflops=2 * float(facts["mmacs"]),
        )
        rows.append(against(row, whole, smaller=True))
    return rows


def against(row: Row, reference: Row | None, *, smaller: bool) -> Row:
    """Add what a row is compared with: points of accuracy, and with `smaller` compression."""
    if reference is None:
        return row
    return replace(
        row,
        compression=reference.parameters / row.parameters if smaller else None,
        improvement=100 * (row.accuracy.mean - reference.accuracy.mean),
    )


def _draw(run: Path, classes: Sequence[str], predictions: Predictions, rows: Sequence[Row]) -> None:
    """Pictures of the run of each model whose accuracy is the median."""
    labels = predictions.labels
    said = {row.name: predictions.models[row.name][predictions.median(row.name)] for row in rows}
    tables = {
        name: confusion_matrix(labels, runs.argmax(axis=1), len(classes))
        for name, runs in said.items()
    }
    write_npz(run / "confusion_matrices.npz", {"classes": np.asarray(classes), **tables})
    titles = {row.name: row.title for row in rows}
    picture = draw_confusions({titles[name]: table for name, table in tables.items()}, classes)
    write_bytes(run / "all_confusion_matrices.png", picture)
    bins = {
        titles[name]: (reliability(labels, runs), expected_calibration_error(labels, runs))
        for name, runs in said.items()
    }
    write_bytes(run / "reliability.png", draw_reliability(bins))


def _split(items: Items) -> dict[str, Any]:
    counts = items.counts()
    return {
        "classes": items.classes,
        "split": {
            **{name: sum(found.values()) for name, found in counts.items()},
            "seed": items.seed,
            "by": "source image",
            "images": len(set(items.groups)),
            "counts": counts,
        },
    }
