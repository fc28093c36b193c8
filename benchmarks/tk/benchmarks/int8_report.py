"""Results of `tk bench int8` as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tk.benchmarks.environment import where
from tk.runtime.files import atomic_folder, write_json

JSON, MARKDOWN = "results.json", "results.md"
REFERENCE = ("fp32", "onnxruntime-cpu")
"""Precision and back end that all others are compared with."""


def write_results(out: Path, results: dict[str, Any], *, overwrite: bool) -> None:
    """Write results.json and results.md, both or none."""
    with atomic_folder(out, overwrite=overwrite, own=MARKDOWN) as folder:
        write_json(folder / JSON, results)
        (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")


def table(results: dict[str, Any]) -> list[str]:
    """Rows of a Markdown table; times are medians in ms per call, speed-ups are of CPU time."""
    batches = list(results["rows"][0]["latency"])
    titles = ["precision, back end", "MB"]
    for batch in batches:
        titles += [f"b{batch} wall", f"b{batch} CPU", "×"]
    titles += ["recall@1 (95 %)", "same neighbour", "cosine mean / min"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    base = {
        batch: next(
            row["latency"][batch]["cpu_p50"]
            for row in results["rows"]
            if (row["precision"], row["backend"]) == REFERENCE
        )
        for batch in batches
    }
    rows = sorted(results["rows"], key=lambda row: row["latency"][batches[0]]["cpu_p50"])
    return lines + ["| " + " | ".join(_cells(row, base)) + " |" for row in rows]


def _cells(row: dict[str, Any], base: dict[str, float]) -> Iterator[str]:
    yield f"{row['precision']}, {row['backend']}"
    yield f"{row['bytes'] / 1e6:.1f}"
    for batch, times in row["latency"].items():
        yield f"{times['p50'] * 1e3:.1f}"
        yield f"{times['cpu_p50'] * 1e3:.1f}"
        yield f"{base[batch] / times['cpu_p50']:.2f}"
    recall = row["recall_at_1"]
    yield f"{recall['value']:.3f} ({recall['low']:.3f} to {recall['high']:.3f})"
    yield f"{row['same_neighbour']:.3f}"
    yield f"{row['cosine']['mean']:.5f} / {row['cosine']['min']:.5f}"


def markdown(results: dict[str, Any]) -> str:
    """A page that says what was measured and how."""
    facts, model, crops = results["environment"], results["model"], results["crops"]
    height, width = model["canvas"]
    repeats = results["options"]["repeats"]
    return "\n".join(
        [
            "# float32 and lower precisions of an embedder on the CPU",
            "",
            f"`{model['id']}`, {model['parameters'] / 1e6:.1f} M parameters, {height}x{width}; "
            f"{facts['time']}.",
            "",
            *table(results),
            "",
            f"Medians of {repeats} calls in ms, warm, all pairs by turns in random order, nothing "
            "clipped; × is CPU time of float32 in ONNX Runtime over that of the row, for CPU time "
            f"bears other work on the machine better than wall time. {crops['queries']} queries "
            f"against {crops['gallery']} crops; neighbours and cosines are compared with float32 "
            "in ONNX Runtime.",
            "",
            *(f"- {line}" for line in where(facts)),
            "",
        ]
    )
