"""The labelled folder by which a pre-training is judged; it is never trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.images import ImageError, find_images, read_image, relative_name

TEST_SHARE = 0.2
HELD_OUT = ("val", "test")
"""Names of the folder beside `train` whose pictures are the questions."""


@dataclass(frozen=True)
class Labelled:
    """Pictures with classes, divided into references and questions.

    Attributes:
        folder: where the files are.
        files: readable pictures.
        labels: (N,) int64, places in `classes`.
        asked: (N,) bool; true for questions, false for references.
        skipped: one sentence per file that cannot be read.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    asked: NDArray[np.bool_]
    classes: tuple[str, ...]
    skipped: tuple[str, ...]

    def digest(self) -> str:
        """What the files are called and how they are divided."""
        digest = hashlib.sha256()
        for file, asked in zip(self.files, self.asked, strict=True):
            text = f"{relative_name(file, self.folder)}\0{asked}\n"
            digest.update(text.encode())
        return digest.hexdigest()[:16]


def find_labelled(folder: Path) -> Labelled:
    """Find pictures in `folder/<class>/...`, or in `folder/train/<class>/...` and `folder/val/...`.

    Without folders `train` and `val` (or `test`) a fifth of each class, the same in every run, is
    asked for and the rest is the reference.

    Raises:
        TkError: fewer than two classes, or a class without a reference or without a question.
    """
    given = next((name for name in HELD_OUT if (folder / name).is_dir()), None)
    given = given if (folder / "train").is_dir() else None
    roots = [folder / "train", folder / given] if given else [folder]
    files, names, asked, skipped = [], [], [], []
    for root in roots:
        for file in find_images(root):
            try:
                read_image(file)
            except ImageError as error:
                skipped.append(f"{relative_name(file, folder)}: {error.what}")
                continue
            files.append(file)
            names.append(_class_of(file, root))
            asked.append(root != roots[0])
    classes = tuple(sorted(set(names)))
    labels = np.asarray([classes.index(name) for name in names], np.int64)
    questions = np.asarray(asked, np.bool_) if given else _deal(labels)
    _check(folder, classes, labels, questions)
    return Labelled(folder, tuple(files), labels, questions, classes, tuple(skipped))


def _class_of(file: Path, root: Path) -> str:
    parts = relative_name(file, root).split("/")
    if len(parts) < 2:
        raise TkError(f"{file} lies in no class folder", expected=f"{root}/<class>/{file.name}")
    return parts[0]


def _deal(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Ask for a fifth of every class, at least one; which, does not depend on the run's seed."""
    asked = np.zeros(len(labels), np.bool_)
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        asked[members[: max(1, round(TEST_SHARE * len(members)))]] = True
    return asked


def _check(
    folder: Path,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    asked: NDArray[np.bool_],
) -> None:
    if len(classes) < 2:
        raise TkError(
            f"{folder} cannot judge a training",
            expected="two classes or more: <class>/<picture>",
            found=", ".join(classes) or "no readable picture",
        )
    for number, name in enumerate(classes):
        held = asked[labels == number]
        if held.all() or not held.any():
            raise TkError(
                f"class {name!r} of {folder} cannot be judged",
                expected="at least one picture to know it by and one to ask for",
                found=f"{int((~held).sum())} and {int(held.sum())}",
            )
