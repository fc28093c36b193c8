"""Class prototypes of a finished run: the run folder is a gallery that the runtime opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tk.runtime.gallery.calibrate import calibrate
from tk.runtime.gallery.gallery import Gallery
from tk.runtime.gallery.prototypes import make_gallery
from tk.train.embedder.config import EmbedderConfig


def choose_references(labels: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` rows of each class (0: all), a seeded choice in their order: (n,) int64."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if 0 < limit < len(members):
            members = np.sort(rng.choice(members, limit, replace=False))
        chosen.append(members)
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def make_prototypes(
    config: EmbedderConfig,
    classes: tuple[str, ...],
    vectors: Mapping[str, NDArray[np.float32]],
    labels: Mapping[str, NDArray[np.int64]],
    checkpoint_sha256: str,
) -> Gallery:
    """Prototypes of the train split, with thresholds found on the crops that it did not see.

    Args:
        vectors: split -> (N, D) float32, unit length.
        labels: split -> (N,) int64.
        checkpoint_sha256: of the weights; the gallery fits bundles that were exported from them.

    Raises:
        TkError: a class without a training crop.
    """
    rows = choose_references(labels["train"], config.max_refs_per_class, config.seed)
    stacks, stack_labels = vectors["train"][rows], labels["train"][rows]
    both = [stack_labels, labels["val"], labels["test"]]
    held = np.concatenate([np.full(len(part), i > 0) for i, part in enumerate(both)])
    thresholds, facts = calibrate(
        np.concatenate([stacks, vectors["val"], vectors["test"]]),
        np.concatenate(both),
        classes,
        config.false_rejections,
        config.seed,
        held=held,
        sub_prototypes=config.sub_prototypes,
    )
    gallery = make_gallery(
        classes, stacks, stack_labels, sub_prototypes=config.sub_prototypes, seed=config.seed
    )
    return replace(
        gallery,
        crop=config.crop_spec(),
        checkpoint_sha256=checkpoint_sha256,
        thresholds=thresholds,
        facts={"calibration": facts, "masks": "given"},
    )
