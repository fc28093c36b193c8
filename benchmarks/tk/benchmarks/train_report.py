"""Results of `tk bench train` as text, Markdown and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tk.benchmarks.environment import where
from tk.runtime.files import atomic_folder, write_json

JSON, MARKDOWN = "results.json", "results.md"
PARTS = {"whole": "whole epoch", "train": "training alone", "evaluate": "validation alone"}


def write_results(out: Path, results: dict[str, Any], *, overwrite: bool) -> None:
    """Write results.json and results.md, both or none."""
    with atomic_folder(out, overwrite=overwrite, own=MARKDOWN) as folder:
        write_json(folder / JSON, results)
        (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{'seconds':<20}{'every epoch':>14}{'kept':>10}{'ratio':>10}"]
    for row in results["speed"]["rows"]:
        values = f"{row['off_s']:>14.3f}{row['on_s']:>10.3f}{row['ratio']:>9.1f}x"
        lines.append(f"{PARTS[row['part']]:<20}{values}")
    lines += speed_lines(results)
    lines.append(f"{'':<44}{'accuracy':>28}{'recall@1':>28}")
    for row in results["quality"]:
        name = f"{row['model_id']}, {_views(row)}, {_runs(row)}"
        lines.append(f"{name:<44}{_share(row['accuracy']):>28}{_share(row['recall_at_1']):>28}")
    return lines


def speed_lines(results: dict[str, Any]) -> list[str]:
    """What the kept features cost and when they pay."""
    speed, crops = results["speed"], results["crops"]
    low, high = speed["whole_ratio_range"]
    pays = speed["pays_after"]
    after = "never" if pays is None else f"after {pays:.1f} epochs"
    return [
        f"ratio of whole epochs over all pairs: {low:.1f}..{high:.1f}x "
        f"(n {speed['epochs_timed']} each)",
        f"kept: {speed['views']} views of {crops['train']} crops, one of {crops['val']} and "
        f"{crops['test']}, {speed['feature_size']} numbers each: built in {speed['build_s']:.1f} "
        f"s, {speed['disk_bytes'] / 1e6:.1f} MB on disk; it pays {after}",
    ]


def markdown(results: dict[str, Any]) -> str:
    """A page that says what was measured and how."""
    facts, speed = results["environment"], results["speed"]
    parts = [
        "# Epochs on a frozen backbone, with and without kept features",
        f"`{speed['model_id']}`, {results['crops']['train']} training crops, {facts['time']}.",
        _speed_table(speed["rows"]),
        _bullets(speed_lines(results)),
        "## Accuracy",
        _quality_table(results["quality"]),
        "## How it was measured",
        _bullets(results["method"]),
        "## Where",
        _bullets(where(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _speed_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| seconds per epoch | backbone in every epoch | features kept | ratio |",
        "|---|--:|--:|--:|",
    ]
    for row in rows:
        cells = f"{row['off_s']:.3f} | {row['on_s']:.3f} | {row['ratio']:.1f}x"
        lines.append(f"| {PARTS[row['part']]} | {cells} |")
    return "\n".join(lines)


def _quality_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| backbone | features | runs | accuracy | recall@1 | accuracy by seed |",
        "|---|---|---|--:|--:|---|",
    ]
    for row in rows:
        seeds = " ".join(f"{value:.3f}" for value in row["accuracy"]["by_seed"])
        figures = f"{_share(row['accuracy'])} | {_share(row['recall_at_1'])}"
        name = f"{row['model_id']}, {row['weights']}"
        lines.append(f"| {name} | {_views(row)} | {_runs(row)} | {figures} | {seeds} |")
    return "\n".join(lines)


def _views(row: dict[str, Any]) -> str:
    return f"{row['views']} views kept" if row["views"] else "not kept"


def _runs(row: dict[str, Any]) -> str:
    return f"{row['epochs']} epochs x {row['seeds']}"


def _share(figure: dict[str, Any]) -> str:
    if figure["share"] is None:
        return "-"
    low, high = figure["interval"]
    return f"{figure['share']:.3f} [{low:.3f}, {high:.3f}] n {figure['asked']}"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
