"""Train, validation and test: stratified by class, and never two crops of one photo apart.

Photos with several crops are dealt out first, large ones first; crops that are alone then fill up
what each class still needs, which is exact to one crop.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.files import write_json
from tk.train.embedder.data import CropFile

SPLITS = ("train", "val", "test")
Labels = NDArray[np.int64]
_EPS = 1e-9  # 1 - 0.2 - 0.1 is a little more than 0.7


def split_crops(
    crops: Sequence[CropFile], val: float, test: float, seed: int
) -> dict[str, list[CropFile]]:
    """Deal crops out to train, val and test.

    Args:
        val: share of all crops for validation, 0..1.
        test: share of all crops for the test; val + test < 1.

    Returns:
        split name -> crops, in their order in `crops`. Every class has a crop in train, and one in
        val and in test as far as its photos reach.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(_group_names(crops)):
        groups[name].append(index)
    labels = np.asarray([crop.label for crop in crops], np.int64)
    members = [np.asarray(found, np.int64) for found in groups.values()]
    chosen = _deal(
        [labels[found] for found in members], np.asarray([1 - val - test, val, test]), seed
    )
    split_of = np.zeros(len(crops), np.int64)
    for found, split in zip(members, chosen, strict=True):
        split_of[found] = split
    return {
        name: [crops[i] for i in np.flatnonzero(split_of == number)]
        for number, name in enumerate(SPLITS)
    }


def _group_names(crops: Sequence[CropFile]) -> list[str]:
    """Photo of every crop; each crop alone where a class's names give too few photos to split.

    Photos are shared by classes: the hammer and the wrench of one scene stay together.
    """
    photos: dict[int, set[str]] = defaultdict(set)
    for crop in crops:
        photos[crop.label].add(crop.group)
    alone = {label for label, names in photos.items() if len(names) < len(SPLITS)}
    return [str(c.path) if c.label in alone else c.group for c in crops]


def _deal(groups: Sequence[Labels], shares: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Choose a split for every group.

    Args:
        groups: (n,) int64 labels of the members of each group.
        shares: (splits,) of all members, sum 1.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    classes = 1 + max((int(labels.max()) for labels in groups), default=-1)
    counts = np.bincount(np.concatenate([*groups, np.zeros(0, np.int64)]), minlength=classes)
    target = shares[:, None] * counts
    chosen = np.zeros(len(groups), np.int64)
    several = [i for i in order if len(groups[i]) > 1]
    have = _deal_photos(groups, several, target, chosen)
    alone: list[list[int]] = [[] for _ in range(classes)]
    for i in order:
        if len(groups[i]) == 1:
            alone[int(groups[i][0])].append(i)
    _deal_singles(alone, target, have, chosen)
    _train_first(groups, chosen, classes)
    return chosen


def _deal_photos(
    groups: Sequence[Labels],
    several: Sequence[int],
    target: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Give every photo to the split that misses its classes most, large photos first.

    Args:
        target: (splits, C) how many members of a class a split should get.

    Returns:
        (splits, C) how many they got.
    """
    have = np.zeros_like(target)
    for i in sorted(several, key=lambda i: -len(groups[i])):
        members = np.bincount(groups[i], minlength=target.shape[1])
        missing = 1 - np.divide(have, target, out=np.ones_like(have), where=target > 0)
        need = np.where(target.any(axis=1), missing @ members, -np.inf)
        chosen[i] = int(need.argmax())
        have[chosen[i]] += members
    return have


def _deal_singles(
    alone: Sequence[Sequence[int]],
    target: NDArray[np.float64],
    have: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> None:
    """Fill up each class; what rounding takes from a split in one class it gets in the next."""
    owed: NDArray[np.float64] = np.zeros(len(target))
    for label, indices in enumerate(alone):
        if not indices:
            continue
        wanted: NDArray[np.float64] = np.clip(target[:, label] - have[:, label], 0, None)
        wanted = wanted * (len(indices) / wanted.sum())
        counts = _round(wanted, (have[:, label] == 0) & (target[:, label] > 0), owed)
        owed = np.clip(owed + wanted - counts, -1, 1)
        chosen[indices] = np.repeat(np.arange(len(target)), counts)


def _round(
    wanted: NDArray[np.float64], empty: NDArray[np.bool_], owed: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Whole numbers beside `wanted` with the same sum.

    Args:
        wanted: (splits,) sum a whole number.
        empty: (splits,) which should get one at least, the first ones first if there are too few.
        owed: (splits,) what earlier roundings have left; it decides who is rounded up.
    """
    total = round(float(wanted.sum()))
    least = np.where(np.cumsum(empty) <= total, empty, False).astype(np.int64)
    counts = np.maximum(np.floor(wanted + _EPS).astype(np.int64), least)
    while counts.sum() < total:
        room = counts < np.ceil(wanted - _EPS)
        counts[np.where(room, wanted + owed - counts, -np.inf).argmax()] += 1
    while counts.sum() > total:
        counts[np.where(counts > least, counts - wanted, -np.inf).argmax()] -= 1
    return counts


def _train_first(groups: Sequence[Labels], chosen: NDArray[np.int64], classes: int) -> None:
    """Move the smallest photo of each class that train has nothing of to train."""
    known = np.zeros(classes, bool)
    for i in np.flatnonzero(chosen == 0):
        known[groups[i]] = True
    for i in sorted(np.flatnonzero(chosen), key=lambda i: len(groups[i])):
        if not known[groups[i]].all():
            chosen[i] = 0
            known[groups[i]] = True


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
