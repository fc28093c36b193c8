"""Results of `tk bench ssl` as text, Markdown and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tk.benchmarks.environment import where
from tk.runtime.files import atomic_folder, write_json

JSON, MARKDOWN = "results.json", "results.md"


def write_results(out: Path, results: dict[str, Any], *, overwrite: bool) -> None:
    """Write results.json and results.md, both or none."""
    with atomic_folder(out, overwrite=overwrite, own=MARKDOWN) as folder:
        write_json(folder / JSON, results)
        (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{'':<48}{'kNN-20':>8}{'linear':>8}{'rank':>7}  by seed (kNN, linear)"]
    for name, row in results["floors"].items():
        lines.append(
            f"{name.replace('_', ' '):<48}{_percent(row['knn_20']):>8}{_percent(row['linear']):>8}"
        )
    for row in results["variants"]:
        figures = f"{_percent(row['knn']['mean']):>8}{_percent(row['linear']['mean']):>8}"
        rank = f"{row['rank_me']['mean']:>7.1f}"
        lines.append(f"{row['what']:<48}{figures}{rank}  {_seeds(row)}")
    return lines


def markdown(results: dict[str, Any]) -> str:
    """A page that says what was measured and how."""
    facts = results["environment"]
    recipe = ", ".join(f"{name} {value}" for name, value in results["recipe"].items())
    parts = [
        "# DINO and iBOT on handwritten digits",
        f"1437 pictures of 8 x 8 pixels without labels, 360 held out; {facts['time']}.",
        _markdown_table(results),
        "## How it was measured",
        _bullets(
            [
                "`tk bench ssl`; figures of the teacher's class token after the last step (not of "
                "the best), percent of the 360 held-out digits; references are the 1437",
                "kNN-20: cosine, 20 neighbours, temperature 0.07; linear: logistic regression on "
                "standardised features",
                "raw pixels and a network with the same start that learned nothing are the floors",
                f"recipe: {recipe}",
                "CPU time of one process with one thread, probes included; other programs ran "
                "beside it, so wall-clock time would say nothing",
            ]
        ),
        "## Over the run",
        _course_table(results["runs"]),
        "## Where",
        _bullets(where(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(results: dict[str, Any]) -> str:
    lines = [
        "| | steps | kNN-20 | linear | RankMe | by seed: kNN, linear | CPU s per run | collapse |",
        "|---|--:|--:|--:|--:|---|---|---|",
    ]
    for name, row in results["floors"].items():
        figures = f"{_percent(row['knn_20'])} | {_percent(row['linear'])}"
        lines.append(f"| {name.replace('_', ' ')} | 0 | {figures} | | | | |")
    for row in results["variants"]:
        figures = f"{_percent(row['knn']['mean'])} | {_percent(row['linear']['mean'])}"
        seconds = ", ".join(f"{value:.0f}" for value in row["cpu_s"])
        seen = ", ".join(row["collapses"]) or "none"
        lines.append(
            f"| {row['what']} | {row['steps']} | {figures} | {row['rank_me']['mean']:.1f} | "
            f"{_seeds(row)} | {seconds} | {seen} |"
        )
    return "\n".join(lines)


def _course_table(runs: list[dict[str, Any]]) -> str:
    """kNN / linear of every evaluation of every run."""
    epochs = sorted({e["epoch"] for run in runs for e in run["evaluations"]})
    lines = [
        "| run | loss | " + " | ".join(f"epoch {epoch}" for epoch in epochs) + " |",
        "|---|--:|" + "--:|" * len(epochs),
    ]
    for run in runs:
        found = {
            e["epoch"]: f"{_percent(e['knn'])} / {_percent(e['linear'])}"
            for e in run["evaluations"]
        }
        cells = " | ".join(found.get(epoch, "") for epoch in epochs)
        lines.append(f"| {run['name']} | {run['loss']:.2f} | {cells} |")
    return "\n".join(lines)


def _seeds(row: dict[str, Any]) -> str:
    pairs = zip(row["knn"]["by_seed"], row["linear"]["by_seed"], strict=True)
    return "; ".join(f"{_percent(knn)}, {_percent(linear)}" for knn, linear in pairs)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
