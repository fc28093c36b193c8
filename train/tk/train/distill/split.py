"""Step 3, first half: which patches there are, and which of them are for the test."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import read_json, write_json
from tk.runtime.images import ImageError, read_image
from tk.runtime.progress import progress
from tk.train.embedder.data import CropFile, check_class_sizes, find_crops
from tk.train.embedder.split import split_crops

FEW = 10
"""A class with fewer test patches is pointed out: each of them is 10 points of its recall."""


@dataclass(frozen=True)
class Items:
    """The patches of a run; row i of every feature file belongs to patch i.

    Attributes:
        root: folder that the files are relative to.
        files: N names, POSIX.
        groups: N source images.
        split: (N,) `train`, `val` or `test`.
        labels: (N,) int64, places in `classes`.
        warnings: sentences on what a reader of the table has to know of the split.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    groups: tuple[str, ...]
    split: NDArray[np.str_]
    labels: NDArray[np.int64]
    seed: int
    warnings: tuple[str, ...] = ()

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Rows of one split or of several."""
        return np.flatnonzero(np.isin(self.split, splits))

    def learned(self) -> NDArray[np.int64]:
        """Rows that heads learn from: they choose nothing by validation, so all but the test."""
        return self.rows("train", "val")

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> patches."""
        return {
            name: {
                kind: int((self.labels[self.rows(name)] == i).sum())
                for i, kind in enumerate(self.classes)
            }
            for name in ("train", "val", "test")
        }


def write_split(
    path: Path,
    root: Path,
    *,
    only: Sequence[str] = (),
    val: float,
    test: float,
    seed: int,
    least: int,
) -> Items:
    """Divide the patches in `root` and write `class_info.json`.

    Patches of one source image stay together (see `tk.train.embedder.split`); files that cannot be
    read are left out and named.

    Args:
        only: folders that are classes; none: all.
        least: patches that a class must have.

    Raises:
        TkError: fewer than two classes, a class with too few patches, or without one in the test.
    """
    names, crops = find_crops(root)
    if only:
        names, crops = _restrict(root, names, crops, only)
    # Divided before unreadable files are left out, as `tk train student` does.
    parts = split_crops(crops, val, test, seed)
    where = {crop.path: name for name, found in parts.items() for crop in found}
    crops, skipped = _readable(crops)
    check_class_sizes(names, crops, least, skipped)
    parts = {split: [c for c in crops if where[c.path] == split] for split in parts}
    _check_test(names, parts)
    items = Items(
        root=root,
        classes=names,
        files=tuple(crop.path.relative_to(root).as_posix() for crop in crops),
        groups=tuple(crop.group for crop in crops),
        split=np.asarray([where[crop.path] for crop in crops]),
        labels=np.asarray([crop.label for crop in crops], np.int64),
        seed=seed,
        warnings=tuple(_warnings(names, parts, skipped)),
    )
    write_json(path, _to_json(items, path.parent))
    return items


def read_split(path: Path) -> Items:
    """Read `class_info.json`.

    Raises:
        TkError: missing, or not what `write_split` wrote.
    """
    value = read_json(path)
    try:
        rows = value["items"]
        return Items(
            root=Path(os.path.normpath(path.parent / value["root"])),
            classes=tuple(value["classes"]),
            files=tuple(row["file"] for row in rows),
            groups=tuple(row["group"] for row in rows),
            split=np.asarray([row["split"] for row in rows]),
            labels=np.asarray([row["label"] for row in rows], np.int64),
            seed=int(value["seed"]),
            warnings=tuple(value["warnings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TkError(
            f"{path} does not describe the rows of features",
            found=f"{type(error).__name__}: {error}",
            fix="remove it: the step split writes it anew",
        ) from None


def _to_json(items: Items, folder: Path) -> dict[str, Any]:
    columns = zip(items.files, items.groups, items.split, items.labels, strict=True)
    return {
        "classes": items.classes,
        "root": os.path.relpath(items.root, folder),
        "seed": items.seed,
        "counts": items.counts(),
        "warnings": items.warnings,
        "items": [
            {"file": file, "group": group, "split": str(split), "label": int(label)}
            for file, group, split, label in columns
        ],
    }


def _restrict(
    root: Path, names: Sequence[str], crops: Sequence[CropFile], only: Sequence[str]
) -> tuple[tuple[str, ...], list[CropFile]]:
    kept = tuple(name for name in names if name in only)
    if len(kept) < 2:
        raise TkError(
            f"{root} holds too few of the classes asked for",
            expected=f"two or more of {', '.join(only)}",
            found=", ".join(names),
            fix="other --class-ids",
        )
    places = {names.index(name): i for i, name in enumerate(kept)}
    return kept, [
        CropFile(crop.path, places[crop.label], crop.group, crop.mask)
        for crop in crops
        if crop.label in places
    ]


def _readable(crops: Sequence[CropFile]) -> tuple[list[CropFile], int]:
    """Open every picture: a broken one must not cost the hours of the backbone."""
    kept, broken = [], []
    with progress("read", len(crops)) as bar:
        for crop in crops:
            bar.advance()
            try:
                read_image(crop.path)
            except ImageError as error:
                broken.append(error.what)
                continue
            kept.append(crop)
    for why in broken[:5]:
        print(f"left out: {why}", file=sys.stderr)
    return kept, len(broken)


def _check_test(names: Sequence[str], parts: dict[str, list[CropFile]]) -> None:
    for split in ("train", "test"):
        counts = Counter(crop.label for crop in parts[split])
        if missing := [name for i, name in enumerate(names) if not counts[i]]:
            raise TkError(
                f"the {split} split has no patch of {', '.join(missing)}",
                found="its patches come from too few source images",
                fix="add images of that class, remove it, --val-split 0, or another --split-seed",
            )


def _warnings(names: Sequence[str], parts: dict[str, list[CropFile]], skipped: int) -> list[str]:
    found = [f"{skipped} unreadable files were left out"] if skipped else []
    test = Counter(crop.label for crop in parts["test"])
    found += [
        f"few test patches of {name} ({test[i]}): figures about it say little"
        for i, name in enumerate(names)
        if test[i] < FEW
    ]
    trained = {crop.group for split in ("train", "val") for crop in parts[split]}
    shared = sorted({crop.group for crop in parts["test"]} & trained)
    if shared:
        found.append(
            f"{len(shared)} source images are in training and test, since a class comes from fewer "
            f"than three of them: {', '.join(shared[:3])}"
        )
    total = Counter(crop.label for crops in parts.values() for crop in crops)
    most = max(total, key=lambda label: total[label])
    if total[most] >= 3 * min(total.values()):
        share = total[most] / sum(total.values())
        found.append(
            f"classes are uneven: saying {names[most]} always is right in {share:.1%}; look at "
            "macro-F1 beside accuracy"
        )
    return found
