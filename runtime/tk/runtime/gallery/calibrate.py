"""Find the `unknown` threshold on held-out references, and measure what it really turns away."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import MODES, SearchMode
from tk.runtime.gallery.prototypes import class_similarity, make_gallery
from tk.runtime.metrics.intervals import wilson

Held = NDArray[np.bool_]


def calibrate(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    false_rejections: float,
    seed: int,
    *,
    held: Held | None = None,
    sub_prototypes: int = 0,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Find the similarity below which an object is `unknown`, per search mode.

    Prototypes come from the references that are not held out; the threshold is the quantile of the
    similarity between held-out references and their own class at the rate of false rejections that
    is allowed. What rate that way of choosing really gives is measured by cross-fitting: the
    threshold of one half of the held-out references is applied to the other half, and vice versa.
    Its interval is of that count; the stored threshold, found on both halves, is steadier.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0..C-1.
        classes: (C,) names.
        false_rejections: share of true objects that may be turned away, 0..1.
        seed: of the choice of held-out references, and of the halves.
        held: (N,) bool, which references are held out; None holds out a third of each class.
        sub_prototypes: centres per class, 0 for none: then the mode `sub` has no threshold.

    Returns:
        Thresholds by mode, and the facts to state them with: held-out counts, the allowed rate, per
        mode the rate measured, and the accuracy of the nearest class.

    Raises:
        TkError: `held` leaves a class without a reference.
    """
    random = np.random.default_rng(seed)
    chosen = _hold_out(labels, len(classes), random) if held is None else held
    _check_held(chosen, labels, classes)
    modes = MODES if sub_prototypes else MODES[:2]
    own_class = labels[chosen]
    facts: dict[str, Any] = {
        "method": "quantile of the similarity of held-out references to their own class",
        "false_rejections": false_rejections,
        "held_out": int(chosen.sum()),
        "held_out_by_class": {
            name: int((own_class == index).sum()) for index, name in enumerate(classes)
        },
    }
    if chosen.sum() < len(classes):
        why = "fewer than three references per class" if held is None else "too few held out"
        facts["method"] = f"none: {why}, nothing is turned away"
        return {mode: -1.0 for mode in modes}, facts
    part = make_gallery(
        classes, embeddings[~chosen], labels[~chosen], sub_prototypes=sub_prototypes, seed=seed
    )
    half = _halves(own_class, random)
    thresholds: dict[str, float] = {}
    measured: dict[SearchMode, dict[str, Any]] = {}
    for mode in modes:
        similarity = class_similarity(part, mode, embeddings[chosen])
        own = similarity[np.arange(len(similarity)), own_class]
        thresholds[mode] = float(np.quantile(own, false_rejections))
        measured[mode] = _measure(own, half, false_rejections)
        facts[f"accuracy_{mode}"] = round(float((similarity.argmax(1) == own_class).mean()), 4)
    return thresholds, facts | {"measured": measured}


def _hold_out(labels: NDArray[np.int64], count: int, random: np.random.Generator) -> Held:
    """Choose a third of each class: (N,) bool."""
    held = np.zeros(len(labels), np.bool_)
    for index in range(count):
        members = random.permutation(np.flatnonzero(labels == index))
        held[members[: len(members) // 3]] = True
    return held


def _check_held(held: Held, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    if held.shape != labels.shape:
        raise ValueError(f"held {held.shape} and labels {labels.shape}")
    bare = [name for index, name in enumerate(classes) if held[labels == index].all()]
    if bare:
        raise TkError(
            "classes whose references are all held out: nothing is left to make prototypes of",
            found=", ".join(bare),
        )


def _halves(labels: NDArray[np.int64], random: np.random.Generator) -> Held:
    """Split held-out references in two, class by class as evenly as can be: (H,) bool."""
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    half = np.zeros(len(labels), np.bool_)
    half[order[::2]] = True
    return half


def _measure(own: NDArray[np.float32], half: Held, false_rejections: float) -> dict[str, Any]:
    """How many of each half the threshold of the other half turns away.

    Args:
        own: (H,) float32, similarity of held-out references to their own class.
        half: (H,) bool.
        false_rejections: the rate allowed.
    """
    rejected, total = 0, 0
    for fitted, tested in ((own[half], own[~half]), (own[~half], own[half])):
        if len(fitted) and len(tested):
            rejected += int((tested < np.quantile(fitted, false_rejections)).sum())
            total += len(tested)
    low, high = wilson(rejected, total)
    return {
        "false_rejections": round(rejected / total, 4) if total else None,
        "interval": [round(low, 4), round(high, 4)],
        "rejected": rejected,
        "of": total,
    }
