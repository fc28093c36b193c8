"""Rank the classes of a gallery for single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import Gallery, SearchMode
from tk.runtime.gallery.references import MASK_FOLDERS, reference_crop, single_reference
from tk.runtime.gallery.search import PrototypeSearch
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.images import find_images
from tk.runtime.progress import progress
from tk.runtime.records import UNKNOWN


def rank_pictures(
    gallery: Gallery,
    paths: Sequence[Path],
    embedder: Embedder,
    segmenter: Segmenter | None = None,
    *,
    search: SearchMode = "centroid",
    threshold: float | None = None,
    device: str = "auto",
    top: int = 5,
) -> list[dict[str, Any]]:
    """Compare pictures of single objects with a gallery.

    Args:
        gallery: of this embedder.
        paths: image files, or folders of them.
        embedder: its CropSpec says how pictures are cut.
        segmenter: cuts them out as the annotator does; see `reference_crop`.
        search: what pictures are compared with.
        threshold: similarity below which the answer is `unknown`; None takes the gallery's own.
        device: where to search; see `faiss_device`.
        top: classes to name per picture.

    Returns:
        One per picture: `image`, `class`, `ranked` (class and similarity, best first), and `error`,
        which is empty for a picture that could be used.

    Raises:
        TkError: no pictures, none that can be used, or a gallery of another embedder.
    """
    gallery.check_embedder(embedder)
    engine = PrototypeSearch(gallery, search, device)
    limit = gallery.thresholds.get(search, -1.0) if threshold is None else threshold
    files = [
        file
        for path in paths
        for file in find_images(path)
        if path == file or file.parent.name not in MASK_FOLDERS
    ]
    answers = []
    with progress("search", len(files)) as bar:
        for file in files:
            answers.append(_rank(file, embedder, segmenter, engine, limit, top))
            bar.advance()
    if files and all(answer["error"] for answer in answers):
        raise TkError(
            "no picture can be used", found="; ".join(answer["error"] for answer in answers[:5])
        )
    return answers


def _rank(
    file: Path,
    embedder: Embedder,
    segmenter: Segmenter | None,
    engine: PrototypeSearch,
    threshold: float,
    top: int,
) -> dict[str, Any]:
    answer: dict[str, Any] = {"image": str(file), "class": UNKNOWN, "ranked": [], "error": ""}
    try:
        crop = reference_crop(single_reference(file), embedder.crop, segmenter)
    except TkError as error:
        return answer | {"error": error.what}
    row = engine.similarity(embedder.embed([crop]))[0]
    order = np.argsort(-row, kind="stable")[:top]
    ranked = [{"class": engine.classes[i], "similarity": float(row[i])} for i in order]
    accepted = row[order[0]] >= threshold
    return answer | {"class": ranked[0]["class"] if accepted else UNKNOWN, "ranked": ranked}
