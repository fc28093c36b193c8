"""The summary of a run as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDE = 12
"""Classes of which the confusion matrix is printed; of more it is in the file alone."""


def summary_lines(summary: dict[str, Any], out: Path) -> Iterator[str]:
    """Lay out what `classify` returns."""
    resumed = summary["resumed_after"]
    more = f", {resumed} of them from an interrupted run" if resumed else ""
    yield (
        f"{summary['images']} pictures{more}, {summary['errors']} unreadable, "
        f"{summary['seconds']:.1f} s, {summary['seconds_in_engine']:.1f} s of them in the engine"
    )
    session = summary["session"]
    yield f"  {session['name']} on {session['backend']}: {session['why']}"
    counts = sorted(summary["classes"].items(), key=lambda pair: (-pair[1], pair[0]))
    yield "  " + ", ".join(f"{kind} {count}" for kind, count in counts if count)
    files = "predictions.csv, predictions.json, summary.json, pictures/"
    if (scored := summary["by_folder"]) is not None:
        yield from _score_lines(scored, list(summary["classes"]))
        files += ", confusion.csv"
    yield f"results: {out}/{files}"


def _score_lines(scored: dict[str, Any], classes: list[str]) -> Iterator[str]:
    accuracy = scored["accuracy"]
    yield (
        f"against the names of folders, {scored['images']} of {scored['of']} pictures: accuracy "
        f"{accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f}), "
        f"macro-F1 {scored['macro_f1']:.4f}"
    )
    if len(classes) > WIDE:
        return
    width = max(5, *(len(name) for name in classes))
    yield f"  {'true':<{width}}  " + "  ".join(f"{name:>{width}}" for name in classes)
    for name, row in zip(classes, scored["confusion"], strict=True):
        yield f"  {name:<{width}}  " + "  ".join(f"{count:>{width}}" for count in row)
