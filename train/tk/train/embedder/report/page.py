"""The page of a training run: figures, pictures, classes, errors, options."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from tk.runtime.metrics.intervals import wilson
from tk.runtime.preprocess import Image
from tk.train.embedder.report.confusion import confusions
from tk.train.embedder.report.history import (
    SPLITS,
    Record,
    best_of,
    figures_of_best,
    number,
    supports,
)
from tk.train.embedder.report.measured import (
    ClassScore,
    Measured,
    mean_f1,
    thumbnail,
    worst_first,
)
from tk.train.embedder.report.neighbours import Nearest

_PAGE = Path(__file__).parent / "page.html"
_SCRIPT = Path(__file__).parent / "page.js"
_ERRORS = 24
_THUMB = 160
_PAGE_WIDTH = 1900
"""Pixels; a wider picture keeps its size and scrolls."""
_ROWS = (
    ("Loss, no margin", "loss"),
    ("Accuracy", "accuracy"),
    ("Macro F1", "macro_f1"),
    ("Macro ROC AUC", "macro_auc"),
    ("Recall@1 within the split", "recall_at_1"),
    ("mAP@R within the split", "map_at_r"),
)
_SPLIT_NAMES = {"train": "Train", "val": "Validation", "test": "Test"}


@dataclass(frozen=True)
class Plot:
    """A picture with its caption; without `png` the note says why there is none."""

    title: str
    note: str
    png: bytes | None


@dataclass(frozen=True)
class Content:
    """All that the page shows; see `write_report`."""

    title: str
    classes: tuple[str, ...]
    records: Sequence[Record]
    held: Measured
    references: Measured
    nearest: Nearest
    scores: list[ClassScore]
    held_name: str
    facts: Mapping[str, str]
    not_finite: int
    plots: Mapping[str, Plot]


def build_page(content: Content) -> str:
    """One self-contained HTML page."""
    script = _SCRIPT.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": _text(content.title),
        # Only the script of this page may run, whatever the names of files and classes hold.
        "policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        "lead": _lead(content),
        "tiles": _tiles(content),
        "warning": _warning(content.not_finite),
        "figures": _figures(content.records),
        "held": _text(content.held_name),
        "classes": _class_rows(content.scores),
        "confusions": _confusions(content),
        "errors": _errors(content),
        "facts": _facts(content.facts),
        "script": script,
        **{f"plot_{name}": _plot(name, plot) for name, plot in content.plots.items()},
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m.group(1)], _PAGE.read_text("utf-8"))


def _lead(content: Content) -> str:
    best = best_of(content.records)
    if best is None:
        return _text(f"{content.held_name}; no best weights were recorded")
    value = number(best.get("value"))
    shown = "" if value is None else f" = {value:.4f}"
    return _text(
        f"{content.held_name}, with the best weights: step {best.get('step')}, "
        f"epoch {best.get('epoch')} ({best.get('metric')}{shown})"
    )


def _tiles(content: Content) -> str:
    held, nearest = content.held, content.nearest
    counts = [
        (str(len(content.classes)), "classes", ""),
        (str(len(held)), "held-out crops", ""),
        (str(len(content.references)), "references", ""),
    ]
    if not len(held):
        return "".join(_tile(*one) for one in counts)
    right = int((held.predicted == held.labels).sum())
    shown = [
        (_share(right, len(held)), "accuracy", _interval(right, len(held))),
        (_percent(mean_f1(content.scores)), "macro F1", ""),
    ]
    if len(content.references):
        hits = int(nearest.right.sum())
        found = _share(hits, len(held)), "nearest reference right", _interval(hits, len(held))
        shown.insert(1, found)
    return "".join(_tile(*one) for one in shown + counts)


def _tile(value: str, label: str, note: str) -> str:
    small = f"<small>{_text(note)}</small>" if note else ""
    return f'<div class="tile"><b>{_text(value)}</b><span>{_text(label)}</span>{small}</div>'


def _warning(lost: int) -> str:
    if not lost:
        return ""
    text = f"{lost} crops are left out: their embedding or probabilities are not finite numbers."
    return f'<p class="warning">{text}</p>'


def _figures(records: Sequence[Record]) -> str:
    """Body of the table of figures: one row per figure, one column per split."""
    figures = figures_of_best(records)
    rows = []
    for label, name in _ROWS:
        cells = "".join(f"<td>{_figure(figures, split, name)}</td>" for split in SPLITS)
        rows.append(f"<tr><th scope=row>{label}</th>{cells}</tr>")
    sizes = {split: sum(supports(figures, split)) for split in SPLITS}
    cells = "".join(f"<td>{sizes[split] or '–'}</td>" for split in SPLITS)
    rows.append(f"<tr><th scope=row>Crops</th>{cells}</tr>")
    head = "".join(f"<th scope=col>{_SPLIT_NAMES[split]}</th>" for split in SPLITS)
    return f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _figure(figures: Record, split: str, name: str) -> str:
    value = number(figures.get(f"{split}_{name}"))
    if value is None:
        return "–"
    if name == "loss":
        return f"{value:.4f}"
    counts = supports(figures, split)
    # An embedding alone in its class has no partner to find, so recall@1 does not count it.
    trials = {
        "accuracy": sum(counts),
        "recall_at_1": sum(count for count in counts if count > 1),
    }.get(name, 0)
    if not trials or not 0 <= value <= 1:
        return _percent(value)
    return f"{_percent(value)} <small>{_interval(round(value * trials), trials)}</small>"


def _plot(name: str, plot: Plot) -> str:
    head = f"<h2>{_text(plot.title)}</h2>"
    if plot.png is None:
        return f'<section id="{name}">{head}<p class="left-out">{_text(plot.note)}</p></section>'
    picture = f'<img src="{_data(plot.png, "png")}" alt="{_text(plot.title)}">'
    # A matrix of many classes is not shrunk to the page: its names could not be read.
    kind = ' class="native"' if _width(plot.png) > _PAGE_WIDTH else ""
    caption = f"<figcaption>{_text(plot.note)}</figcaption>"
    return f'<section id="{name}">{head}<figure{kind}>{picture}{caption}</figure></section>'


def _width(png: bytes) -> int:
    """Pixels; they stand in the header of the file."""
    return int.from_bytes(png[16:20], "big")


def _class_rows(scores: list[ClassScore]) -> str:
    rows = []
    for one in worst_first(scores):
        low, high = wilson(one.right, one.support)
        recall = f"{_percent(one.recall)} <small>{_range(low, high)}</small>"
        cells = [
            f'<th scope=row data-value="{_text(one.name)}">{_text(one.name)}</th>',
            _cell(one.support, str(one.support)),
            _cell(one.precision, _percent(one.precision)),
            _cell(one.recall, recall if one.support else "–"),
            _cell(one.f1, _percent(one.f1)),
            _cell(one.auc, _percent(one.auc)),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(rows)


def _cell(value: float, shown: str) -> str:
    """A number as people read it, with the number that the page sorts by."""
    return f'<td data-value="{"" if np.isnan(value) else f"{value:.6f}"}">{shown}</td>'


def _confusions(content: Content) -> str:
    found = confusions(content.classes, content.held)
    if not found:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{_text(true)}</th><td>{_text(answer)}</td><td>{count} of {total}</td>"
        f"<td>{count / total:.0%}</td></tr>"
        for true, answer, count, total in found
    )
    head = "<tr><th>True class</th><th>taken for</th><th>crops</th><th>share</th></tr>"
    return (
        f"<h3>Most frequent confusions</h3><div class=scroll><table><thead>{head}</thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _errors(content: Content) -> str:
    """Cards of the wrong answers that the model was surest of."""
    held, nearest = content.held, content.nearest
    if not len(held):
        return '<p class="left-out">Left out: there are no held-out crops.</p>'
    predicted = held.predicted
    wrong = np.flatnonzero(predicted != held.labels)
    if not len(wrong):
        return f"<p>All {len(held)} held-out crops got their class.</p>"
    sure = held.probabilities[wrong, predicted[wrong]]
    ordered = wrong[np.argsort(-sure, kind="stable")][:_ERRORS]
    cards = []
    for i in ordered.tolist():
        answer, true = content.classes[predicted[i]], content.classes[held.labels[i]]
        lines = [
            f"<b>{_text(true)}</b> taken for <b>{_text(answer)}</b>",
            f"probability {held.probabilities[i, predicted[i]]:.3f}, "
            f"of the true class {held.probabilities[i, held.labels[i]]:.3f}",
        ]
        if nearest.index.shape[1] and np.isfinite(nearest.similarity[i, 0]):
            near = content.classes[content.references.labels[nearest.index[i, 0]]]
            lines.append(f"nearest reference: {_text(near)} {nearest.similarity[i, 0]:.3f}")
        picture = _data(_jpeg(thumbnail(held, i, _THUMB)), "jpeg")
        file = _text(held.files[i])
        cards.append(
            f'<article class="card"><img src="{picture}" alt="{file}"><div class="body">'
            f'<div class="name">{file}</div>{"".join(f"<div>{line}</div>" for line in lines)}'
            "</div></article>"
        )
    count = f"<p>{len(ordered)} of {len(wrong)} errors among {len(held)} crops.</p>"
    return f'{count}<div class="grid">{"".join(cards)}</div>'


def _facts(facts: Mapping[str, str]) -> str:
    pairs = (f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in facts.items())
    return "".join(pairs)


def _share(successes: int, total: int) -> str:
    return _percent(successes / total)


def _interval(successes: int, total: int) -> str:
    return f"{_range(*wilson(successes, total))}, n = {total}"


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _jpeg(image: Image) -> bytes:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return bytes(data.tobytes()) if done else b""


def _text(value: object) -> str:
    """Text of an element or attribute, without lone surrogates, which UTF-8 cannot hold."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))
