"""Results of `tk bench crops` as text, Markdown and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tk.benchmarks.environment import where
from tk.runtime.files import atomic_folder, write_json

JSON, MARKDOWN = "results.json", "results.md"
STAGES = {
    "decode": "JPEG decoding (either)",
    "crops": "tk: crops, uint8",
    "normalise": "tk: normalise",
    "tk": "tk: both",
    "lightly": "lightly DINOTransform",
}
RATIOS = {
    "same_output": "same output",
    "crops_only": "crops alone",
    "with_decode": "with decoding",
}


def write_results(out: Path, results: dict[str, Any], *, overwrite: bool) -> None:
    """Write results.json and results.md, both or none."""
    with atomic_folder(out, overwrite=overwrite, own=MARKDOWN) as folder:
        write_json(folder / JSON, results)
        (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = []
    for group in results["groups"]:
        lines.append(_title(group))
        lines.append(f"{'CPU ms per picture':<26}{'min':>9}{'median':>9}{'max':>9}{'per s':>9}")
        for name, label in STAGES.items():
            lines.append(f"{label:<26}" + "".join(f"{value:>9}" for value in _cells(group, name)))
        for name, label in RATIOS.items():
            lines.append(f"lightly / tk, {label:<18}{_range(group['ratios'][name]):>24}")
    return lines


def markdown(results: dict[str, Any]) -> str:
    """A page that says what was measured and how."""
    facts = results["environment"]
    parts = [f"# Multi-crop per core, beside lightly\n\n{facts['time']}."]
    for group in results["groups"]:
        parts += [f"## {_title(group)}", _stages(group), _ratios(group)]
    parts += [
        "## How it was measured",
        "\n".join(f"- {line}" for line in results["method"]),
        "## Where",
        "\n".join(f"- {line}" for line in where(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _title(group: dict[str, Any]) -> str:
    return (
        f"{group['name']}: {group['pictures']} pictures of {group['mean_pixels']} pixels on average"
    )


def _cells(group: dict[str, Any], name: str) -> list[str]:
    row = group["rows"][name]
    spread = [f"{row[f'{key}_ms']:.2f}" for key in ("min", "median", "max")]
    return [*spread, f"{row['per_second']:.0f}"]


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f}..{ratio['max']:.2f})"


def _stages(group: dict[str, Any]) -> str:
    lines = [
        "| CPU ms per picture | min | median | max | pictures/s per core |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, label in STAGES.items():
        lines.append(f"| {label} | " + " | ".join(_cells(group, name)) + " |")
    return "\n".join(lines)


def _ratios(group: dict[str, Any]) -> str:
    lines = ["| lightly / tk | median (min..max) |", "|---|--:|"]
    for name, label in RATIOS.items():
        lines.append(f"| {label} | {_range(group['ratios'][name])} |")
    return "\n".join(lines)
