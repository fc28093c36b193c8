"""The table: Markdown, CSV and PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.transforms import Bbox

from tk.runtime.files import write_bytes
from tk.runtime.metrics.classification import per_class
from tk.train.distill.results import Comparison, Figure, Predictions, Row
from tk.train.embedder.report.style import INK, LINE, SOFT, new_figure, png, style

HEADER = (
    *("Model", "Parameters", "Accuracy", "Inference Time", "Compression", "Improvement"),
    *("Macro-F1", "ECE"),
)
TABLE = "results_table.md"
DASH = "—"
ONE_FIT = "†"
NOTES = (
    "Accuracy in square brackets: 95 % interval over seeds (Student's t); "
    f"{ONE_FIT} of a single fit, the 95 % interval is over test patches (Wilson).",
    "Improvement: points of accuracy against the teacher, for linear probes against the first one.",
    "Inference time: `tk bench table RUN` measures it, for heads and from pixels.",
)


def percent(value: Figure) -> str:
    """`94.32% [93.90, 94.74]`."""
    text = f"{100 * value.mean:.2f}%"
    if value.low is None or value.high is None:
        return text
    mark = ONE_FIT if value.interval == "patches" else ""
    return f"{text} [{100 * value.low:.2f}, {100 * value.high:.2f}]{mark}"


def cells(row: Row) -> tuple[str, ...]:
    """Text of a row, in the order of HEADER."""
    return (
        row.title,
        str(row.parameters),
        percent(row.accuracy),
        DASH,
        DASH if row.compression is None else f"{row.compression:.1f}x",
        DASH if row.improvement is None else f"{row.improvement:+.2f}%",
        f"{row.macro_f1.mean:.4f}",
        f"{row.ece.mean:.4f}",
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned in the text as well."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def findings(
    rows: Sequence[Row], comparisons: Sequence[Comparison], warnings: Sequence[str]
) -> list[str]:
    """What stands under the table: answers, then warnings about the data."""
    titles = {row.name: row.title for row in rows}
    answers = [
        f"{c.question[0].upper()}{c.question[1:]}? {titles[c.a]} against {titles[c.b]}: "
        f"{c.verdict}, McNemar p {c.p_mcnemar:.3g}"
        for c in comparisons
    ]
    return answers + [f"Mind: {text}" for text in warnings]


def said(run: Path) -> str:
    """What a finished run prints: its table, and where the files are."""
    table = run / TABLE
    if not table.is_file():
        return f"{run}: no table yet; the steps train and compare make it"
    text = table.read_text("utf-8").rstrip()
    return (
        f"{text}\n\n{table}, results.json, all_confusion_matrices.png, reliability.png, "
        f"{run / 'models'}; next: tk bench table {run}"
    )


def write_tables(
    run: Path,
    classes: Sequence[str],
    predictions: Predictions,
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    warnings: Sequence[str],
) -> None:
    """Write results_table.md, results_table.png, results.csv and detailed_metrics.csv."""
    table = [cells(row) for row in rows]
    lines = (*findings(rows, comparisons, warnings), *NOTES)
    under = "\n".join(f"- {line}" for line in lines)
    write_bytes(run / TABLE, f"{markdown(HEADER, table)}\n\n{under}\n".encode())
    write_bytes(run / "results_table.png", draw_table(HEADER, table))
    write_bytes(run / "results.csv", _csv(_RESULTS, [_numbers(row) for row in rows]))
    write_bytes(run / "detailed_metrics.csv", _csv(_DETAILS, _details(classes, predictions, rows)))


BOLD = 1.25
"""Width of a bold letter over that of a plain one."""


def draw_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """The table as a picture."""
    # the header is bold, so its letters are wider
    wide = [round(len(title) * BOLD) for title in header]
    widths = [
        max(title, *map(len, column)) + 2
        for title, column in zip(wide, zip(*rows, strict=True), strict=True)
    ]
    total = sum(widths)
    with style():
        figure = new_figure(0.078 * total, 0.34 * (len(rows) + 1) + 0.2)
        axes = figure.add_subplot()
        axes.set_axis_off()
        drawn = axes.table(
            [list(row) for row in rows],
            colLabels=list(header),
            colWidths=[width / total for width in widths],
            cellLoc="left",
            colLoc="left",
            bbox=Bbox.unit(),
        )
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(9)
        for (line, _), cell in drawn.get_celld().items():
            cell.visible_edges = "B"
            cell.set_edgecolor(SOFT if line == 0 else LINE)
            cell.set_text_props(color=INK, weight="bold" if line == 0 else "normal")
        return png(figure)


_RESULTS = (
    *("name", "title", "kind", "parameters", "accuracy", "accuracy_low", "accuracy_high"),
    *("interval", "macro_f1", "ece", "compression", "improvement", "seeds"),
)
_DETAILS = ("name", "seed", "class", "precision", "recall", "f1", "auc", "support")


def _numbers(row: Row) -> tuple[object, ...]:
    a = row.accuracy
    return (
        *(row.name, row.title, row.kind, row.parameters, a.mean, a.low, a.high, a.interval),
        *(row.macro_f1.mean, row.ece.mean, row.compression, row.improvement, len(a.seeds)),
    )


def _details(
    classes: Sequence[str], predictions: Predictions, rows: Sequence[Row]
) -> list[tuple[object, ...]]:
    return [
        (row.name, seed, kind, f.precision, f.recall, f.f1, f.auc, f.support)
        for row in rows
        for seed, said in enumerate(predictions.models[row.name])
        for kind, f in zip(classes, per_class(predictions.labels, said), strict=True)
    ]


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([header, *rows])
    return buffer.getvalue().encode()
