"""Classes for the detections of one image, each class at most once.

A detection is given a class only when its similarity reaches the class's threshold. What it gains
by a class is `similarity - threshold`; staying unknown gains 0. So with one threshold for all, the
best assignment has the greatest sum of similarities, where an unknown counts as the threshold; with
a threshold per class, a class that is easily matched has to be matched better.
"""

from __future__ import annotations

from typing import Literal, get_args

import lap
import numpy as np
import numpy.typing as npt

from tk.runtime.errors import TkError

Mode = Literal["unique", "greedy", "free"]
Gain = npt.NDArray[np.float64]

TIE = 1e-9
"""Added to every allowed gain, far below what float32 can tell: at a tie a class beats unknown."""


def assign_classes(
    similarity: npt.NDArray[np.float32],
    unknown: float | npt.NDArray[np.float32],
    mode: Mode = "unique",
) -> list[int | None]:
    """Choose a class, or none, for each detection of one image.

    Args:
        similarity: (N, C) float32, of each detection to each class, higher is better.
        unknown: the least similarity of an accepted class: one number or (C,).
        mode: "unique": the best one-to-one assignment. "greedy": the seed's: for each class its
            best detection keeps it; the others, best first, take the first class in their own
            ranking that is free. "free": each its best class, which may then repeat.

    Returns:
        N class indices; None is unknown.

    Raises:
        TkError: a similarity or threshold is not finite, shapes do not fit, or `mode` is unknown.
    """
    likeness: Gain = np.asarray(similarity, np.float64)
    finite = np.isfinite(likeness)
    if likeness.ndim != 2 or not finite.all():
        raise TkError(
            "similarities of detections to classes are not a finite matrix",
            expected="(N, C), no NaN",
            found=f"{likeness.shape}, {np.count_nonzero(~finite)} not finite",
            fix="run `tk verify` on the embedder's bundle",
        )
    threshold = np.asarray(unknown, np.float64)
    if threshold.shape not in ((), likeness.shape[1:]) or not np.isfinite(threshold).all():
        raise TkError(
            "the threshold of the unknown class is wrong",
            expected=f"a finite number, or {likeness.shape[1]} of them",
            found=f"{unknown!r:.80}",
        )
    if mode not in get_args(Mode):
        raise TkError(f"no such assignment: {mode}", expected=" | ".join(get_args(Mode)))
    if not likeness.size:
        return [None] * len(likeness)
    gain = likeness - threshold
    if mode == "unique":
        return [int(c) if c >= 0 else None for c in best_pairs(gain + TIE * (gain >= 0))]
    return _greedy(likeness, gain) if mode == "greedy" else _free(likeness, gain)


def best_pairs(gain: Gain) -> npt.NDArray[np.int64]:
    """Pair rows with columns one to one so that the gains add up to the most.

    Args:
        gain: (N, M) float64, finite; a pair with a gain of 0 or less is never made.

    Returns:
        (N,) int64, the column of each row, or -1.
    """
    gain = np.asarray(gain, np.float64)
    columns: npt.NDArray[np.int64] = np.full(len(gain), -1, np.int64)
    if not gain.size:
        return columns
    n = len(gain)
    useful: npt.NDArray[np.int64] = np.arange(gain.shape[1])
    if len(useful) > n:
        # The other rows take n - 1 columns at most, so no row needs more than its n best ones;
        # lapjv pads to a square, which with a thousand classes takes a tenth of a second.
        useful = np.unique(np.argpartition(-gain, n - 1, axis=1)[:, :n])
        gain = gain[:, useful]
    # A pair that must not be made is worth as much as no pair at all, and is undone afterwards:
    # that is the same optimum as one private "unknown" column per row, with a smaller matrix.
    chosen = lap.lapjv(-np.maximum(gain, 0), extend_cost=True, return_cost=False)[0]
    rows = np.flatnonzero(chosen >= 0)
    made = rows[gain[rows, chosen[rows]] > 0]
    columns[made] = useful[chosen[made]]
    return columns


def _free(similarity: Gain, gain: Gain) -> list[int | None]:
    best = similarity.argmax(axis=1)
    reached = gain[np.arange(len(gain)), best] >= 0
    return [int(c) if ok else None for c, ok in zip(best, reached, strict=True)]


def _greedy(similarity: Gain, gain: Gain) -> list[int | None]:
    assigned: list[int | None] = [None] * len(similarity)
    ranking = np.argsort(-similarity, axis=1, kind="stable")
    order = np.argsort(-similarity.max(axis=1), kind="stable")
    taken: set[int] = set()
    rest: list[int] = []
    for i in order.tolist():
        best = int(ranking[i, 0])
        if best in taken or gain[i, best] < 0:
            rest.append(i)
        else:
            assigned[i] = best
            taken.add(best)
    for i in rest:
        free = (c for c in ranking[i].tolist() if c not in taken and gain[i, c] >= 0)
        if (first := next(free, None)) is not None:
            assigned[i] = first
            taken.add(first)
    return assigned


def margins(
    similarity: npt.NDArray[np.float32], assigned: list[int | None]
) -> tuple[list[float | None], list[int | None]]:
    """Say how far each class was ahead of the best other one.

    A negative margin means that another class fitted better but was taken. A detection left unknown
    has no margin, and its runner-up is the class it is most similar to. With a single class there
    is no other one: no margin, no runner-up.

    Args:
        similarity: (N, C) float32, of each detection to each class.
        assigned: N class indices, or None for unknown.

    Returns:
        N margins (similarity of the class minus that of the runner-up) and N runner-up classes.
    """
    margin: list[float | None] = [None] * len(assigned)
    runner_up: list[int | None] = [None] * len(assigned)
    for i, (row, own) in enumerate(zip(similarity, assigned, strict=True)):
        others = np.array(row, np.float64)
        if own is not None:
            others[own] = -np.inf
        if len(others) > (own is not None):
            second = int(others.argmax())
            runner_up[i] = second
            margin[i] = None if own is None else float(row[own]) - float(row[second])
    return margin, runner_up
