"""The report of a training run: pictures and one page that can be mailed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tk.runtime.files import write_bytes
from tk.train.embedder.report.confusion import draw_confusion
from tk.train.embedder.report.curves import draw_curves
from tk.train.embedder.report.measured import Measured, class_scores, finite_part
from tk.train.embedder.report.neighbours import draw_neighbours, find_nearest
from tk.train.embedder.report.page import Content, Plot, build_page
from tk.train.embedder.report.per_class import draw_per_class
from tk.train.embedder.report.projection import draw_projection
from tk.train.embedder.report.style import LeftOut, png, style

HELD = "held"
"""Key of `facts` with the name of the held-out split, the title of its section."""


def write_report(
    folder: Path,
    title: str,
    classes: tuple[str, ...],
    records: list[dict[str, Any]],
    held: Measured,
    references: Measured,
    facts: Mapping[str, str],
) -> Path:
    """Write `report.html` and `plots/*.png` of a finished run.

    What cannot be drawn (an empty split, values that are not finite) is left out; the page says so
    and an older picture of that name is removed.

    Args:
        folder: the run's folder.
        title: heading of the page.
        classes: names, in the order of the labels.
        records: lines of metrics.jsonl.
        held: the test split, or validation if there is no test.
        references: crops that queries are compared with, as the gallery would hold them.
        facts: options and data sizes; `facts["held"]` names the held-out split.

    Returns:
        The page.
    """
    held, lost = finite_part(held)
    references, lost_references = finite_part(references)
    nearest = find_nearest(held, references)
    scores = class_scores(classes, held)
    drawings: dict[str, tuple[str, Callable[[], tuple[Figure, str]]]] = {
        "curves": ("The run", lambda: draw_curves(records)),
        "confusion": ("Confusion matrix", lambda: draw_confusion(classes, held)),
        "per_class": ("Classes", lambda: draw_per_class(scores)),
        "neighbours": (
            "Nearest references",
            lambda: draw_neighbours(classes, held, references, nearest),
        ),
        "projection": (
            "Embeddings on a plane",
            lambda: draw_projection(classes, held, references),
        ),
    }
    with style():
        plots = {name: _plot(*drawing) for name, drawing in drawings.items()}
    for name, plot in plots.items():
        path = folder / "plots" / f"{name}.png"
        if plot.png is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, plot.png)
    content = Content(
        title=title,
        classes=classes,
        records=records,
        held=held,
        references=references,
        nearest=nearest,
        scores=scores,
        held_name=facts.get(HELD, "Held-out crops"),
        facts={key: value for key, value in facts.items() if key != HELD},
        not_finite=lost + lost_references,
        plots=plots,
    )
    page = folder / "report.html"
    write_bytes(page, build_page(content).encode("utf-8"))
    return page


def _plot(title: str, draw: Callable[[], tuple[Figure, str]]) -> Plot:
    try:
        figure, caption = draw()
    except LeftOut as reason:
        return Plot(title, f"Left out: {reason}.", None)
    return Plot(title, caption, png(figure))
