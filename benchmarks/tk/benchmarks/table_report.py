"""Both tables of `tk bench table` as Markdown, CSV and PNG: heads alone, and from pixels."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tk.benchmarks.latency import duration
from tk.runtime.files import write_bytes, write_json
from tk.train.distill.results import Row
from tk.train.distill.tables import DASH, HEADER, ONE_FIT, cells, draw_table, markdown

JSON, HEADS, PIXELS = "latency.json", "table_heads", "table_pixels"
TIMES = ("p99, batch 1", "p50, batch 32", "p99, batch 32")
HEADS_HEADER = (*HEADER, *TIMES, "Features/s", "Speed-Up")
PIXELS_HEADER = (
    *("Model", "Network", "Parameters", "Accuracy", "Inference Time", "Compression"),
    *(
        "Improvement",
        "Macro-F1",
        "ECE",
        *TIMES,
        "Images/s",
        "CPU Time",
        "Speed-Up",
        "Speed-Up, CPU",
        "MFLOPs",
    ),
)
TEACHER = "teacher"
"""Row that compression and speed-up are relative to."""

WAITING = 1.25
"""Wall over CPU time of one thread, above which the processor was not its own."""

BY_KIND = {"heads": HEADS, "pixels": PIXELS}


def write_report(run: Path, rows: Sequence[Row], results: dict[str, Any]) -> None:
    """Write latency.json, table_heads.{md,csv,png} and table_pixels.{md,csv,png}."""
    tables = {
        HEADS: (HEADS_HEADER, head_cells(rows, results), notes("heads", results)),
        PIXELS: (PIXELS_HEADER, pixel_cells(rows, results), notes("pixels", results)),
    }
    for name, (header, table, lines) in tables.items():
        under = "\n".join(f"- {line}" for line in lines)
        write_bytes(run / f"{name}.md", f"{markdown(header, table)}\n\n{under}\n".encode())
        write_bytes(run / f"{name}.png", draw_table(header, table))
    for kind, name in BY_KIND.items():
        write_bytes(run / f"{name}.csv", _csv(kind, rows, results))
    write_json(run / JSON, results)


def said(run: Path) -> str:
    """What the command prints: both tables with their notes."""
    heads, pixels = ((run / f"{name}.md").read_text("utf-8").rstrip() for name in (HEADS, PIXELS))
    files = ", ".join(f"{name}.{{md,csv,png}}" for name in (HEADS, PIXELS))
    return (
        f"Heads alone, from a feature:\n\n{heads}\n\nFrom pixels:\n\n{pixels}\n\n"
        f"results: {run}/{JSON}, {files}"
    )


def head_cells(rows: Sequence[Row], results: dict[str, Any]) -> list[list[str]]:
    """The seed's table with its inference time, and what it leaves out."""
    table = []
    for row in rows:
        if row.kind != "head":
            continue
        line = list(cells(row))
        line[HEADER.index("Inference Time")] = duration(_p50("heads", row.name, results))
        times = _times("heads", row.name, results)
        table.append([*line, *times, _speed_up("heads", row.name, results)])
    return table


def pixel_cells(rows: Sequence[Row], results: dict[str, Any]) -> list[list[str]]:
    """The same for the whole way from pixels to class."""
    table = []
    chains = results["chains"]
    for row in rows:
        chain = chains[row.name]
        known = dict(zip(HEADER, cells(row), strict=True))
        known |= {
            "Network": chain["network"],
            "Parameters": str(chain["parameters"]),
            "Inference Time": duration(_p50("pixels", row.name, results)),
            "Compression": _ratio(_compression(row.name, chains)),
            "CPU Time": duration(_figures("pixels", row.name, "1", results)["cpu_p50"]),
            "Speed-Up": _speed_up("pixels", row.name, results),
            "Speed-Up, CPU": _speed_up("pixels", row.name, results, "cpu_p50"),
            "MFLOPs": f"{chain['mflops']:.1f}",
        }
        times = _times("pixels", row.name, results)
        known |= dict(zip((*TIMES, "Images/s"), times, strict=True))
        table.append([known[title] for title in PIXELS_HEADER])
    return table


def notes(kind: str, results: dict[str, Any]) -> list[str]:
    """How it was measured, in sentences; the spread and the load belong to it."""
    facts, options = results["environment"], results["options"]
    figures = results["figures"][kind]
    numbers = {
        batch: sorted({one["n"] for one in found.values()}) for batch, found in figures.items()
    }
    spread = {
        batch: (min(one["cv"] for one in f.values()), max(one["cv"] for one in f.values()))
        for batch, f in figures.items()
    }
    unstable = sorted(
        {name for found in figures.values() for name, one in found.items() if not one["stable"]}
    )
    lines = [
        f"Timed: {results['stages'][kind]}.",
        "Inference Time: median (p50) at batch 1. "
        + "; ".join(
            f"batch {batch}: n {'-'.join(map(str, n))}, coefficient of variation "
            f"{spread[batch][0]:.2f} to {spread[batch][1]:.2f}"
            for batch, n in numbers.items()
        )
        + "; warmed up until two windows agreed within 5 %, all models by turns in random order, "
        "nothing clipped"
        + (f"; NOT stable after the warm-up: {', '.join(unstable)}" if unstable else "")
        + ".",
        f"Accuracy in square brackets: 95 % interval over seeds, {ONE_FIT} over test patches; "
        "Improvement in points of accuracy. "
        + (
            f"Speed-Up and Compression: relative to the {TEACHER}"
            + ("'s chain." if kind == "pixels" else ".")
        ),
    ]
    if options["threads"] == 1 and (worst := _waiting(figures["1"])) > WAITING:
        lines.append(
            f"MIND: other work held the processor. The median call took up to {worst:.1f} times "
            "its CPU time, so times and Speed-Up say little: compare CPU times, or measure again "
            "on an idle machine."
        )
    if kind == "pixels":
        lines.append("CPU Time: median at batch 1, which other work on the machine hardly changes.")
        lines += _pixel_notes(results)
    load, after = (" ".join(map(str, facts[key])) for key in ("load_average", "load_average_after"))
    versions = facts["versions"]
    lines.append(
        f"ONNX Runtime {versions.get('onnxruntime', '?')} on the CPU, float32, "
        f"threads: {options['threads'] or 'all'}; {facts['cpu']}, {facts['cores']} cores; load "
        f"average before {load}, after {after}; {facts['time']}."
    )
    return lines


def _pixel_notes(results: dict[str, Any]) -> list[str]:
    crops, decode = results["crops"], results["figures"]["decode"]["1"]["decode"]
    shared = [
        f"{name} as {chain['same_as']}"
        for name, chain in results["chains"].items()
        if chain["same_as"] != name
    ]
    lines = [
        f"Crops of {crops['width']:g}x{crops['height']:g} pixels (median of {crops['held']} of the "
        f"test); decoding one takes {duration(decode['p50'])} more (p99 {duration(decode['p99'])})."
    ]
    if shared:
        lines.append(f"Equal networks are measured once: {', '.join(shared)}.")
    return lines


def _figures(kind: str, name: str, batch: str, results: dict[str, Any]) -> dict[str, Any]:
    """Figures of a row; from pixels those of the row that it is equal to."""
    measured = results["chains"][name]["same_as"] if kind == "pixels" else name
    found: dict[str, Any] = results["figures"][kind][batch][measured]
    return found


def _p50(kind: str, name: str, results: dict[str, Any]) -> float:
    return float(_figures(kind, name, "1", results)["p50"])


def _times(kind: str, name: str, results: dict[str, Any]) -> list[str]:
    one, many = (_figures(kind, name, batch, results) for batch in ("1", "32"))
    per_second = 32 / many["p50"] if many["p50"] else float("inf")
    return [
        *(duration(one["p99"]), duration(many["p50"]), duration(many["p99"])),
        f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.1f}",
    ]


def _speed_up(kind: str, name: str, results: dict[str, Any], key: str = "p50") -> str:
    known = results["chains"] if kind == "pixels" else results["figures"][kind]["1"]
    if TEACHER not in known:
        return DASH
    own, teacher = (float(_figures(kind, n, "1", results)[key]) for n in (name, TEACHER))
    return _ratio(teacher / own if own else None)


def _waiting(figures: dict[str, Any]) -> float:
    """How many times its CPU time the median call of one thread took, the worst of all models."""
    ratios = [float(one["p50"] / one["cpu_p50"]) for one in figures.values() if one["cpu_p50"]]
    return max(ratios, default=1.0)


def _compression(name: str, chains: dict[str, Any]) -> float | None:
    if TEACHER not in chains or name == TEACHER:
        return None
    return float(chains[TEACHER]["parameters"] / chains[name]["parameters"])


def _ratio(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}x"


_COLUMNS = (
    *("name", "title", "kind", "parameters", "accuracy", "accuracy_low", "accuracy_high"),
    *("macro_f1", "ece", "measured_as"),
)
_TIMES = ("n", "p50", "p90", "p95", "p99", "mean", "cv", "mad", "cpu_p50", "warm_up", "stable")


def _csv(kind: str, rows: Sequence[Row], results: dict[str, Any]) -> bytes:
    """All figures as numbers, seconds."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    batches = list(results["figures"][kind])
    writer.writerow([*_COLUMNS, *(f"batch_{b}_{key}" for b in batches for key in _TIMES)])
    for row in rows:
        if kind == "heads" and row.kind != "head":
            continue
        chain, a = results["chains"][row.name], row.accuracy
        heads = kind == "heads"
        writer.writerow(
            [
                *(row.name, row.title, row.kind),
                row.parameters if heads else chain["parameters"],
                *(a.mean, a.low, a.high, row.macro_f1.mean, row.ece.mean),
                row.name if heads else chain["same_as"],
                *(_figures(kind, row.name, b, results)[key] for b in batches for key in _TIMES),
            ]
        )
    return buffer.getvalue().encode()
