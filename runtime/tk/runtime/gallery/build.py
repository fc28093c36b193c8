"""Build a gallery from reference pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.gallery.calibrate import calibrate
from tk.runtime.gallery.gallery import Gallery
from tk.runtime.gallery.prototypes import class_centroids, make_gallery
from tk.runtime.gallery.references import BY_SEGMENTER, GIVEN, embed_references, find_references
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter

__all__ = ["BuildReport", "build_gallery", "calibrate", "class_centroids"]


@dataclass(frozen=True)
class BuildReport:
    """What building found.

    Attributes:
        references: pictures used.
        skipped: one sentence per picture that could not be used.
    """

    references: int
    skipped: tuple[str, ...]


def build_gallery(
    folder: Path,
    embedder: Embedder,
    segmenter: Segmenter | None = None,
    *,
    false_rejections: float = 0.02,
    seed: int = 0,
    sub_prototypes: int = 0,
) -> tuple[Gallery, BuildReport]:
    """Embed references and make prototypes.

    Args:
        folder: see `find_references`.
        embedder: its CropSpec says how references are cut.
        segmenter: cuts references out as the annotator will; see `reference_crop`.
        false_rejections: share of true objects that the `unknown` threshold may turn away.
        seed: of the choice of held-out references, and of the sub-prototypes.
        sub_prototypes: centres per class, 0 for none.

    Raises:
        TkError: no usable reference at all, or a class without one.
    """
    references = find_references(folder)
    found = embed_references(references, embedder, segmenter)
    classes = tuple(sorted({reference.class_name for reference in references}))
    labels = np.asarray([classes.index(one.class_name) for one in found.kept], np.int64)
    empty = [name for index, name in enumerate(classes) if not (labels == index).any()]
    if empty or not classes:
        raise TkError(
            f"no usable reference for {', '.join(empty) or 'any class'} in {folder}",
            found="; ".join(found.skipped[:5]) or "no pictures",
        )
    thresholds, facts = calibrate(
        found.rows, labels, classes, false_rejections, seed, sub_prototypes=sub_prototypes
    )
    prototypes = make_gallery(classes, found.rows, labels, sub_prototypes=sub_prototypes, seed=seed)
    gallery = replace(
        prototypes,
        embedder_sha256=embedder.sha256,
        crop=embedder.crop,
        thresholds=thresholds,
        facts={
            "calibration": facts,
            "references": _count(labels, classes),
            "masks": GIVEN if segmenter is None else BY_SEGMENTER,
            "sub_prototypes": sub_prototypes,
        },
    )
    return gallery, BuildReport(len(found.kept), found.skipped)


def _count(labels: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, int]:
    return {name: int((labels == index).sum()) for index, name in enumerate(classes)}
