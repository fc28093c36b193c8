"""From the raw samples of `tk bench train` to the figures of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from tk.runtime.metrics.intervals import wilson

FIGURES = ("accuracy", "recall_at_1")


def summarise_speed(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the epochs after the first, without and with kept features.

    Args:
        runs: the run without, then the one with.

    Returns:
        `rows`: of `whole` epochs and of `train` and `evaluate` alone: seconds of each and ratio;
        `whole_ratio_range` over pairs of epochs; `build_s`, `disk_bytes`; `pays_after`: epochs
        after which the whole training is faster.
    """
    off, on = runs
    rows = []
    for part in ("whole", "train", "evaluate"):
        without, kept = (median(e[part] for e in run["epochs"][1:]) for run in runs)
        rows.append({"part": part, "off_s": without, "on_s": kept, "ratio": without / kept})
    ratios = [a["whole"] / b["whole"] for a in off["epochs"][1:] for b in on["epochs"][1:]]
    saved = rows[0]["off_s"] - rows[0]["on_s"]
    return {
        "model_id": on["model_id"],
        "views": on["views"],
        "feature_size": on["feature_size"],
        "rows": rows,
        "whole_ratio_range": [min(ratios), max(ratios)],
        "epochs_timed": len(on["epochs"]) - 1,
        "build_s": on["build_s"],
        "disk_bytes": on["disk_bytes"],
        "pays_after": on["build_s"] / saved if saved > 0 else None,
    }


def summarise_quality(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per backbone and number of views, counts of all seeds added up.

    Returns:
        Rows with `accuracy` and `recall_at_1`: share, 95% Wilson interval, right, asked, and
        share by seed.
    """
    table: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        table.setdefault((run["model_id"], run["views"]), []).append(run)
    return [
        {
            "model_id": model_id,
            "weights": own[0]["weights"],
            "views": views,
            "epochs": len(own[0]["epochs"]),
            "seeds": len(own),
            **{name: _share([run["quality"][name] for run in own]) for name in FIGURES},
        }
        for (model_id, views), own in table.items()
    ]


def _share(counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Share and interval of (right, asked) by seed."""
    right, asked = (sum(count[i] for count in counts) for i in (0, 1))
    return {
        "share": right / asked if asked else None,
        "interval": list(wilson(right, asked)),
        "right": right,
        "asked": asked,
        "by_seed": [one / of for one, of in counts if of],
    }
