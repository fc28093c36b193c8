"""Results of `tk bench models` as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tk.benchmarks.environment import where
from tk.benchmarks.latency import duration
from tk.runtime.files import atomic_folder, write_json

JSON, MARKDOWN = "results.json", "results.md"
NOT_JUDGED = "not in the bundle"
PYTORCH = "PyTorch"
BASE = f"{PYTORCH}, eager"
FLOAT32 = "fp32 on onnxruntime-cpu"


def write_results(out: Path, results: dict[str, Any], *, overwrite: bool) -> None:
    """Write results.json and results.md, both or none."""
    with atomic_folder(out, overwrite=overwrite, own=MARKDOWN) as folder:
        write_json(folder / JSON, results)
        (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")


def table(results: dict[str, Any]) -> list[str]:
    """A Markdown table of each part, fastest engine first."""
    lines: list[str] = []
    for part in dict.fromkeys(row["part"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["part"] == part]
        lines += ["", f"Part `{part}`", "", *_part_table(rows, results["parity"], part)]
    return lines[1:]


def _part_table(rows: list[dict[str, Any]], parity: list[dict[str, Any]], part: str) -> list[str]:
    sizes, base = list(rows[0]["latency"]), _base(rows)
    on_gpu = any(row["gpu"] for row in rows)
    titles = ["engine", "MB", "load + first call"]
    for size in sizes:
        titles += [f"b{size} p50 / p99", *([f"b{size} GPU alone"] if on_gpu else []), "×"]
    lines = ["| " + " | ".join([*titles, "against PyTorch's answers"]) + " |"]
    lines.append("|---" * (len(titles) + 1) + "|")
    said = {one["engine"]: one["measures"].get(part, []) for one in parity}
    for row in sorted(rows, key=lambda row: row["latency"][sizes[0]]["p50"]):
        known = "; ".join(said.get(row["engine"], [])) or NOT_JUDGED
        answers = "" if row["engine"].startswith(PYTORCH) else known
        cells = [*_cells(row, sizes, base, on_gpu), answers]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _base(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What others are compared with: PyTorch, else float32 of ONNX Runtime, else the first."""
    by_name = {row["engine"]: row for row in rows}
    found: dict[str, Any] = by_name.get(BASE) or by_name.get(FLOAT32) or rows[0]
    return found


def _cells(
    row: dict[str, Any], sizes: list[str], base: dict[str, Any], on_gpu: bool
) -> Iterator[str]:
    steady = all(row["latency"][size].get("stable", True) for size in sizes)
    yield row["engine"] + ("" if steady else " (unsteady)")
    yield f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else ""
    yield duration(row["opened"] + row["first_call"])
    for size in sizes:
        times = row["latency"][size]
        yield f"{duration(times['p50'])} / {duration(times['p99'])}"
        if on_gpu:
            yield duration(row["gpu"][size]["p50"]) if size in row["gpu"] else ""
        yield f"{base['latency'][size]['p50'] / times['p50']:.2f}"


def markdown(results: dict[str, Any]) -> str:
    """A page that says what was measured and how."""
    facts, model, options = results["environment"], results["model"], results["options"]
    parameters = f", {model['parameters'] / 1e6:.1f} M parameters" if model["parameters"] else ""
    base = _base(results["rows"])["engine"]
    skipped = [
        f"{one['engine']}, as a whole model: {one['skipped']}"
        for one in results["parity"]
        if one["skipped"]
    ]
    return "\n".join(
        [
            f"# {model['bundle']} on every engine",
            "",
            f"{model['task']}{', ' + model['id'] if model['id'] else ''}{parameters}; "
            f"{facts['time']}.",
            "",
            *table(results),
            "",
            f"Median and 99th percentile of {options['repeats']} calls, from arrays in the host's "
            "memory to arrays there; decoding and letterboxing are not in it. Warm, all engines by "
            f"turns in random order, nothing clipped. × is the median of {base} over that of the "
            "row. GPU alone: the median by CUDA events, without copies. Only pairs that passed the "
            "gate are timed. The bundle holds PyTorch's answers of some parts; these are compared "
            "once more. PyTorch has its defaults (TF32 for convolutions on a GPU), but its threads "
            "do not spin while they wait (OMP_WAIT_POLICY=PASSIVE), or they would hold up all "
            "others. Unsteady: medians of warm-up windows still differed by more than 5 %.",
            "",
            *(f"- left out: {text}" for text in results["left_out"]),
            *(f"- not compared: {text}" for text in skipped),
            *(f"- {line}" for line in where(facts)),
            "",
        ]
    )
