"""How well a gallery and an embedder name pictures whose classes are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import Gallery, SearchMode
from tk.runtime.gallery.references import (
    BY_SEGMENTER,
    GIVEN,
    embed_references,
    find_references,
)
from tk.runtime.gallery.search import PrototypeSearch
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.metrics.classification import macro_f1, per_class
from tk.runtime.metrics.intervals import wilson
from tk.runtime.metrics.retrieval import map_at_r, nearest, recall_at_1

COPY = 0.99999
"""A cosine that two different pictures hardly reach."""


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    count: int
    of: int

    def to_json(self) -> dict[str, Any]:
        """Share (None of nothing), interval and counts."""
        low, high = wilson(self.count, self.of)
        return {
            "share": self.count / self.of if self.of else None,
            "interval": [low, high],
            "count": self.count,
            "of": self.of,
        }


def evaluate_gallery(
    gallery: Gallery,
    folder: Path,
    embedder: Embedder,
    segmenter: Segmenter | None = None,
    *,
    search: SearchMode = "centroid",
    threshold: float | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Name pictures of known classes and count what is right.

    Args:
        gallery: of this embedder.
        folder: pictures in the layout of `find_references`; not those the gallery was made of.
        embedder: its CropSpec says how pictures are cut.
        segmenter: cuts them out as the annotator does; see `reference_crop`.
        search: what pictures are compared with.
        threshold: similarity below which a picture is `unknown`; None takes the gallery's own.
        device: where to search; see `faiss_device`.

    Returns:
        Figures, ready for JSON; see `measure`. `skipped` has a sentence per unusable picture.

    Raises:
        TkError: gallery and embedder do not go together, or no picture can be used.
    """
    gallery.check_embedder(embedder)
    engine = PrototypeSearch(gallery, search, device)
    found = embed_references(find_references(folder), embedder, segmenter)
    if not found.kept:
        raise TkError(
            f"no usable picture in {folder}", found="; ".join(found.skipped[:5]) or "no pictures"
        )
    names = [reference.class_name for reference in found.kept]
    limit = gallery.thresholds.get(search, -1.0) if threshold is None else threshold
    figures = measure(gallery.classes, names, found.rows, engine.similarity(found.rows), limit)
    return {
        "search": search,
        **figures,
        "copies_of_references": _copies(gallery, found.rows),
        "masks": GIVEN if segmenter is None else BY_SEGMENTER,
        "masks_of_references": gallery.facts.get("masks", ""),
        "skipped": list(found.skipped),
    }


def measure(
    classes: tuple[str, ...],
    names: list[str],
    rows: NDArray[np.float32],
    similarity: NDArray[np.float32],
    threshold: float,
) -> dict[str, Any]:
    """Figures of merit of similarities to known classes.

    Args:
        classes: (C,) names of the gallery.
        names: (N,) true class of each picture; one that is not in `classes` is an outsider.
        rows: (N, D) float32 embeddings, unit length.
        similarity: (N, C) float32, cosine to each class.
        threshold: an answer below it is `unknown`.

    Returns:
        accuracy, macro_f1: nearest class, of the pictures whose class is in the gallery.
        false_rejections: of these, how many are turned away as `unknown`.
        right_rejections: of the outsiders, how many are turned away.
        accuracy_with_unknown: of all pictures; right is the own class, `unknown` for outsiders.
        recall_at_1, map_at_r: among all pictures, without the gallery.
        per_class, outsiders: the same by class.
    """
    index = {name: place for place, name in enumerate(classes)}
    true = np.asarray([index.get(name, -1) for name in names], np.int64)
    known = true >= 0
    nearest_class = similarity.argmax(axis=1)
    rejected = similarity.max(axis=1) < threshold
    right = known & (nearest_class == true)
    _, own_labels = np.unique(names, return_inverse=True)
    return {
        "threshold": threshold,
        "pictures": len(names),
        "known": int(known.sum()),
        "accuracy": _share(right[known]),
        "macro_f1": _number(macro_f1(true[known], nearest_class[known])),
        "false_rejections": _share(rejected[known]),
        "right_rejections": _share(rejected[~known]),
        "accuracy_with_unknown": _share(np.where(known, right & ~rejected, rejected)),
        "recall_at_1": _number(recall_at_1(rows, own_labels.astype(np.int64))),
        "map_at_r": _number(map_at_r(rows, own_labels.astype(np.int64))),
        "per_class": _class_table(classes, true[known], similarity[known], rejected[known]),
        "outsiders": _outsiders(names, known, rejected, [classes[i] for i in nearest_class]),
    }


def _share(hits: NDArray[np.bool_]) -> dict[str, Any]:
    return Share(int(hits.sum()), len(hits)).to_json()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _class_table(
    classes: tuple[str, ...],
    true: NDArray[np.int64],
    similarity: NDArray[np.float32],
    rejected: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    """One row per class that is true or answered, in the order of the gallery."""
    answered = np.bincount(similarity.argmax(axis=1), minlength=len(classes))
    figures = per_class(true, similarity)
    return [
        {
            "class": name,
            "pictures": figures[i].support,
            "precision": figures[i].precision,
            "recall": figures[i].recall,
            "f1": figures[i].f1,
            "auc": _number(figures[i].auc),
            "rejected": int(rejected[true == i].sum()),
        }
        for i, name in enumerate(classes)
        if figures[i].support or answered[i]
    ]


def _outsiders(
    names: list[str],
    known: NDArray[np.bool_],
    rejected: NDArray[np.bool_],
    nearest_names: list[str],
) -> list[dict[str, Any]]:
    """One row per class that the gallery does not have, with what it is mostly taken for."""
    table = []
    for name in sorted({name for name, inside in zip(names, known, strict=True) if not inside}):
        rows = [i for i, other in enumerate(names) if other == name]
        taken_for = Counter(nearest_names[i] for i in rows).most_common(1)[0][0]
        turned_away = int(rejected[rows].sum())
        table.append(
            {"class": name, "pictures": len(rows), "rejected": turned_away, "nearest": taken_for}
        )
    return table


def _copies(gallery: Gallery, rows: NDArray[np.float32]) -> int:
    """How many pictures look just like a reference of the gallery: figures on them flatter."""
    similarity = nearest(rows, gallery.stacks, 1)[1]
    return int((similarity >= COPY).any(axis=1).sum())
