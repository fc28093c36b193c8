"""Results of `tk bench annotator` as text, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tk.benchmarks.environment import where
from tk.benchmarks.summary import REFERENCES, SIDES
from tk.runtime.files import atomic_folder, write_json

JSON, MARKDOWN, CSV, PICTURE = "results.json", "results.md", "results.csv", "stages.png"
COLUMNS = (
    "stage",
    *(f"{side}_ms" for side in SIDES),
    *(f"over_{side}" for side in REFERENCES),
)


def write_results(out: Path, results: dict[str, Any], *, overwrite: bool) -> None:
    """Write results.json, results.md, results.csv and stages.png, all or none."""
    with atomic_folder(out, overwrite=overwrite, own=MARKDOWN) as folder:
        write_json(folder / JSON, results)
        (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")
        with open(folder / CSV, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(results["summary"]["rows"])
        _plot(folder / PICTURE, results["summary"]["rows"])


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal: stages, then what the figures mean."""
    titles = [*SIDES, *(f"/{side}" for side in REFERENCES)]
    lines = [f"{'ms per image':<22}" + "".join(f"{title:>12}" for title in titles)]
    for row in results["summary"]["rows"]:
        values = [f"{row[f'{side}_ms']:.2f}" for side in SIDES]
        values += [_ratio(row[f"over_{side}"]) for side in REFERENCES]
        lines.append(f"{row['stage']:<22}" + "".join(f"{value:>12}" for value in values))
    return [*lines, *summary_lines(results), *results["quality_lines"]]


def summary_lines(results: dict[str, Any]) -> list[str]:
    """Speed, efficiency, memory and equality in a few sentences."""
    summary = results["summary"]
    lines = []
    for side in REFERENCES:
        low, high = summary["ratio_range"][side]
        own_low, own_high = summary["ratio_range_without_encode"][side]
        lines.append(
            f"over {side}, pairs of passes: {low:.2f}..{high:.2f}x, "
            f"without encode {own_low:.2f}..{own_high:.2f}x"
        )
    for side, own in summary["sides"].items():
        peak = own["peak_rss_mb"]
        memory = "" if peak is None else f", peak memory +{peak:.0f} MB"
        lines.append(
            f"{side}: {own['images_per_second']:.2f} images/s, per image p50 {own['p50_ms']:.1f} "
            f"p90 {own['p90_ms']:.1f} ms (n {own['samples']}), CPU {own['cpu_ms']:.0f} ms{memory}"
        )
    lines.append(
        f"efficiency of tk: {summary['engine_ms']:.2f} ms per image inside engines, "
        f"{summary['efficiency']:.0%} of wall time; overhead {summary['overhead']:.1%} of CPU time"
    )
    for side, equality in results["equality"].items():
        lines += _equality_lines(side, equality)
    return [*lines, *(f"PROBLEM: {problem}" for problem in results["problems"])]


def _equality_lines(side: str, equality: dict[str, Any]) -> list[str]:
    return [
        f"equal: {equality['matched']} matched of {equality['reference']} ({side}) and "
        f"{equality['candidate']} (tk), share {equality['matched_share']:.4f}; box IoU mean "
        f"{equality['mean_box_iou']:.4f} min {equality['min_box_iou']:.4f}; mask IoU mean "
        f"{equality['mean_mask_iou']:.4f} min {equality['min_mask_iou']:.4f}; same class "
        f"{equality['class_agreement']:.4f}"
    ]


def markdown(results: dict[str, Any]) -> str:
    """A page that says what was measured and how."""
    facts, options = results["environment"], results["options"]
    sessions = ", ".join(
        f"{s['name']} ({s['precision']}) on {s['backend']}" for s in results["sessions"]
    )
    parts = [
        "# tk annotate against PyTorch",
        f"{options['pictures_timed']} images of `{options['images']}`, {facts['time']}.",
        _markdown_table(results["summary"]["rows"]),
        _bullets(summary_lines(results)),
    ]
    if results["quality_lines"]:
        parts += ["## Against ground truth (tk)", _bullets(results["quality_lines"])]
    parts += [
        "## How it was measured",
        _bullets(results["method"]),
        "## Where",
        _bullets([*where(facts), f"engines: {sessions}"]),
        "![Milliseconds per image by stage](stages.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: list[dict[str, Any]]) -> str:
    titles = [f"{side}, ms per image" for side in SIDES] + [f"over {side}" for side in REFERENCES]
    lines = ["| stage | " + " | ".join(titles) + " |", "|---" + "|--:" * len(titles) + "|"]
    for row in rows:
        cells = [f"{row[f'{side}_ms']:.2f}" for side in SIDES]
        cells += [_ratio(row[f"over_{side}"]) for side in REFERENCES]
        lines.append(f"| {row['stage']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _ratio(value: float) -> str:
    return f"{value:.2f}x" if value == value else "-"


def _plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Stacked bars of all sides, with and without `encode`, which may dwarf the rest."""
    from matplotlib.figure import Figure

    stages = [row for row in rows if not row["stage"].startswith("total")]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for place, left_out in enumerate(("", "encode")):
        axes = figure.add_subplot(1, 2, place + 1)
        sides = SIDES[::-1]
        starts = [0.0] * len(sides)
        for index, row in enumerate(stages):
            if row["stage"] == left_out:
                continue
            widths = [row[f"{side}_ms"] for side in sides]
            axes.barh(sides, widths, left=starts, label=row["stage"], color=f"C{index}")
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_xlabel("ms per image")
        axes.set_title(f"without {left_out}" if left_out else "all stages")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
