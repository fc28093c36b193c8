"""Train, validation and test: stratified by class, and never two crops of one photo apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.files import write_json
from tk.train.embedder.data import CropFile

SPLITS = ("train", "val", "test")


def split_crops(
    crops: Sequence[CropFile], val: float, test: float, seed: int
) -> dict[str, list[CropFile]]:
    """Deal crops out to train, val and test.

    Args:
        val: share of all crops for validation, 0..1.
        test: share of all crops for the test; val + test < 1.

    Returns:
        split name -> crops, in their order in `crops`.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(_group_names(crops)):
        groups[name].append(index)
    labels = np.asarray([crop.label for crop in crops], np.int64)
    shares = np.asarray([1 - val - test, val, test])
    target = shares[:, None] * np.bincount(labels)[None].astype(np.float64)
    chosen = _deal([labels[members] for members in groups.values()], target, seed)
    result: dict[str, list[int]] = {name: [] for name in SPLITS}
    for members, split in zip(groups.values(), chosen, strict=True):
        result[SPLITS[split]] += members
    return {name: [crops[i] for i in sorted(members)] for name, members in result.items()}


def _group_names(crops: Sequence[CropFile]) -> list[str]:
    """Photo of every crop; each crop alone where a class's names give too few photos to split.

    Photos are shared by classes: the hammer and the wrench of one scene stay together.
    """
    photos: dict[int, set[str]] = defaultdict(set)
    for crop in crops:
        photos[crop.label].add(crop.group)
    alone = {label for label, names in photos.items() if len(names) < len(SPLITS)}
    return [str(c.path) if c.label in alone else c.group for c in crops]


def _deal(
    groups: Sequence[NDArray[np.int64]], target: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """Give every group to the split that misses its classes most, large groups first.

    Args:
        groups: (n,) int64 labels of the members of each group.
        target: (splits, C) how many members of a class a split should get.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort([-len(groups[i]) for i in order], kind="stable")]
    have = np.zeros_like(target)
    chosen = np.zeros(len(groups), np.int64)
    for i in order:
        members = np.bincount(groups[i], minlength=target.shape[1])
        missing = 1 - np.divide(have, target, out=np.ones_like(have), where=target > 0)
        need = np.where(target.any(axis=1), missing @ members, -np.inf)
        chosen[i] = int(need.argmax())
        have[chosen[i]] += members
    return chosen


def write_splits(
    path: Path, root: Path, classes: Sequence[str], splits: Mapping[str, Sequence[CropFile]]
) -> None:
    """Write `splits.json`: split -> class -> files relative to the data folder."""
    table = {
        name: {
            label: [c.path.relative_to(root).as_posix() for c in crops if c.label == i]
            for i, label in enumerate(classes)
        }
        for name, crops in splits.items()
    }
    counts = {
        name: dict(Counter(classes[c.label] for c in crops)) for name, crops in splits.items()
    }
    write_json(path, {"counts": counts, "files": table})
