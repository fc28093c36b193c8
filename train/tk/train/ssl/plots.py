"""Picture of a pre-training: loss, entropies of the teacher, rank, probes, over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tk.runtime.files import write_bytes
from tk.train.embedder.report.history import Record, best_of, number, series
from tk.train.embedder.report.style import (
    BAD,
    GOOD,
    HELD,
    SOFT,
    TEST,
    TRAIN,
    LeftOut,
    is_empty,
    new_figure,
    png,
    style,
)

FILE = "curves.png"
_LOSSES = {"dino_loss": ("DINO", TRAIN), "ibot_loss": ("iBOT", TEST)}
_ENTROPIES = {
    "teacher_entropy": ("of an answer", TRAIN),
    "entropy_of_mean": ("of the mean answer", HELD),
}
_PROBES = {"knn": ("kNN-20", TRAIN), "linear": ("linear", HELD)}
_DASHES = (":", "-.")
_DENSE = 40
"""More points than these are drawn without markers."""


def write_curves(
    folder: Path,
    records: Sequence[Record],
    out_dim: int,
    floors: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Draw `curves.png` into a run folder.

    Args:
        records: lines of metrics.jsonl. Steps have `loss`, `dino_loss`, `ibot_loss`,
            `teacher_entropy`, `entropy_of_mean`; evaluations have `rank_me`, `knn`, `linear`.
            What a run has not recorded is said to be missing.
        out_dim: prototypes K; ln K is drawn where it means a collapse or a bound.
        floors: as `probes.floors.floors` gives them: broken lines beside the probes.

    Returns:
        the file.

    Raises:
        LeftOut: the records hold nothing to draw.
    """
    path = folder / FILE
    with style():
        write_bytes(path, png(draw_curves(records, out_dim, floors)))
    return path


def draw_curves(
    records: Sequence[Record],
    out_dim: int,
    floors: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Draw four panels; arguments and errors as `write_curves`."""
    known = ("loss", *_LOSSES, *_ENTROPIES, *_PROBES, "rank_me")
    if not any(len(series(records, "step", name)[0]) for name in known):
        raise LeftOut("the run has recorded no step and no evaluation")
    figure = new_figure(10, 6.4)
    loss, entropy, rank, probes = figure.subplots(2, 2).ravel()
    log_k = math.log(out_dim)
    losses = {name: line for name, line in _LOSSES.items() if len(series(records, "step", name)[0])}
    _panel(loss, "Loss", records, losses or {"loss": ("loss", TRAIN)})
    _level(loss, log_k, f"ln {out_dim}: nothing learned", BAD)
    _panel(entropy, "Entropy of the teacher, nats", records, _ENTROPIES)
    _level(entropy, log_k, f"ln {out_dim}: the most there is", SOFT)
    _panel(rank, "Effective rank (RankMe)", records, {"rank_me": ("features", GOOD)})
    _panel(probes, "Accuracy of probes", records, _PROBES)
    for place, (source, figures) in enumerate((floors or {}).items()):
        for name, (label, color) in zip(("knn_20", "linear"), _PROBES.values(), strict=True):
            text = f"{label}, {source.replace('_', ' ')}"
            _level(probes, figures.get(name), text, color, _DASHES[place % len(_DASHES)])
    for axes in (loss, entropy, rank, probes):
        _finish(axes, best_of(records))
    return figure


def _panel(
    axes: Axes, title: str, records: Sequence[Record], lines: Mapping[str, tuple[str, str]]
) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    for name, (label, color) in lines.items():
        x, y = series(records, "step", name)
        if len(x):
            marker = "o" if len(x) <= _DENSE else ""
            axes.plot(x, y, color=color, linewidth=1.4, marker=marker, markersize=3.5, label=label)


def _level(axes: Axes, value: float | None, label: str, color: str, dash: str = ":") -> None:
    """Broken line across a panel that has something in it."""
    if axes.has_data() and value is not None:
        axes.axhline(value, color=color, linewidth=1, linestyle=dash, label=label)


def _finish(axes: Axes, best: Record | None) -> None:
    axes.grid(True)
    if is_empty(axes):
        return
    step = number(best.get("step")) if best else None
    if step is not None:
        axes.axvline(step, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="best")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="best")
