"""Picture: how the run went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tk.train.embedder.report.history import Record, Series, best_of, events, number, series
from tk.train.embedder.report.style import HELD, SOFT, TEST, TRAIN, LeftOut, is_empty, new_figure

_BINS = 300
_PANELS = (
    ("Accuracy", "accuracy"),
    ("Macro F1", "macro_f1"),
    ("Macro ROC AUC", "macro_auc"),
)
_RETRIEVAL = (("recall@1", "val_recall_at_1", "-"), ("mAP@R", "val_map_at_r", "--"))
_PLAIN = FuncFormatter(lambda value, place: f"{value:g}")


def draw_curves(records: Sequence[Record]) -> tuple[Figure, str]:
    """Loss and learning rate by step; accuracy, F1, AUC and retrieval by epoch; the best marked.

    Returns:
        The figure and its caption.

    Raises:
        LeftOut: the records hold nothing to draw.
    """
    steps, evals = events(records, None), events(records, "eval")
    if not any(len(series(steps, "step", name)[0]) for name in ("loss", "lr")) and not evals:
        raise LeftOut("the run has recorded no step and no evaluation")
    figure = new_figure(12, 6.4)
    grid = figure.subplots(2, 3).ravel()
    _loss(grid[0], steps, evals)
    _learning_rate(grid[1], steps)
    best = best_of(records)
    axis = (
        "epoch" if evals and all(number(one.get("epoch")) is not None for one in evals) else "step"
    )
    tests = events(records, "test")
    for axes, (title, name) in zip(grid[2:5], _PANELS, strict=True):
        _figure_by_epoch(axes, title, name, evals, axis)
        _mark_test(axes, name, best, tests, axis)
        _mark_best(axes, best, axis, name)
    for label, name, dash in _RETRIEVAL:
        _line(grid[5], series(evals, axis, name), HELD, f"val {label}", dash)
    _finish(grid[5], "Retrieval within validation", axis)
    _mark_best(grid[5], best, axis, "recall_at_1")
    for axes in grid[:2]:
        _mark_best(axes, best, "step", "")
    return figure, _caption(best)


def _caption(best: Record | None) -> str:
    text = (
        "The loss of the steps includes the margin, the loss of the evaluations does not, "
        "so the two may differ much. The pale band is the range of the steps around a point."
    )
    if best is None:
        return text
    value = number(best.get("value"))
    shown = "" if value is None else f", {value:.4f}"
    where = f"epoch {best.get('epoch')}, step {best.get('step')}"
    return f"Dashed line: the best {best.get('metric')}{shown}, at {where}. {text}"


def _loss(axes: Axes, steps: Sequence[Record], evals: Sequence[Record]) -> None:
    curve = series(steps, "step", "loss")
    _band(axes, curve, "steps, with margin")
    lows = [curve[1]]
    for name, color in (("train", TRAIN), ("val", HELD)):
        points = series(evals, "step", f"{name}_loss")
        _line(axes, points, color, f"{name}, no margin")
        lows.append(points[1])
    values = np.concatenate(lows)
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())
    _finish(axes, "Loss", "step")


def _learning_rate(axes: Axes, steps: Sequence[Record]) -> None:
    x, y = series(steps, "step", "lr")
    axes.plot(x, y, color=SOFT, linewidth=1.6)
    axes.yaxis.set_major_formatter(_PLAIN)
    if len(y):
        axes.set_ylim(0, float(y.max()) * 1.08 or 1)
    _finish(axes, "Learning rate", "step")


def _figure_by_epoch(axes: Axes, title: str, name: str, evals: Sequence[Record], axis: str) -> None:
    for split, color in (("train", TRAIN), ("val", HELD)):
        _line(axes, series(evals, axis, f"{split}_{name}"), color, split)
    _finish(axes, title, axis)


def _mark_test(
    axes: Axes, name: str, best: Record | None, tests: Sequence[Record], axis: str
) -> None:
    x = number(best.get(axis)) if best else None
    y = number(tests[-1].get(f"test_{name}")) if tests else None
    if x is None or y is None:
        return
    axes.plot([x], [y], "D", color=TEST, markersize=6, label=f"test {y:.3f}", zorder=4)
    axes.legend(loc="best")


def _mark_best(axes: Axes, best: Record | None, axis: str, name: str) -> None:
    x = number(best.get(axis)) if best else None
    if best is None or x is None or not axes.has_data():
        return
    axes.axvline(x, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    value = number(best.get("value"))
    if name and best.get("metric") == f"val_{name}" and value is not None:
        axes.plot([x], [value], "*", color=HELD, markersize=13, label=f"best {value:.3f}", zorder=5)
        axes.legend(loc="best")


def _band(axes: Axes, curve: Series, label: str) -> None:
    """Mean and range of the steps around each of at most `_BINS` points."""
    x, y = curve
    if not len(x):
        return
    bins = np.array_split(
        np.arange(len(x)), min(_BINS, max(1, len(x) // 4) if len(x) > 40 else len(x))
    )
    middle = [x[one].mean() for one in bins]
    axes.fill_between(
        middle, [y[one].min() for one in bins], [y[one].max() for one in bins],
        color="#9aa5b1", alpha=0.35, linewidth=0,
    )  # fmt: skip
    mean = [y[one].mean() for one in bins]
    axes.plot(middle, mean, color="#77828f", linewidth=1.2, label=label)


def _line(axes: Axes, points: Series, color: str, label: str, dash: str = "-") -> None:
    x, y = points
    if not len(x):
        return
    marker = "o" if len(x) <= 40 else ""
    axes.plot(x, y, dash, color=color, linewidth=1.6, marker=marker, markersize=3.5, label=label)


def _finish(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.grid(True)
    if is_empty(axes):
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
