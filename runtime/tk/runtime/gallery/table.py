"""An evaluation as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def evaluation_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Lay out what `evaluate_gallery` returns."""
    outside = figures["pictures"] - figures["known"]
    yield (
        f"{figures['known']} pictures of {_classes(figures['per_class'])} in the gallery, "
        f"{outside} of outsiders; search {figures['search']}, "
        f"unknown below {figures['threshold']:.3f}"
    )
    for label, key in (
        ("accuracy", "accuracy"),
        ("false rejections", "false_rejections"),
        ("right rejections", "right_rejections"),
        ("accuracy with unknown", "accuracy_with_unknown"),
    ):
        if figures[key]["of"]:
            yield f"  {label:<22} {_share(figures[key])}"
    for label, key in (
        ("macro-F1", "macro_f1"),
        ("recall@1", "recall_at_1"),
        ("mAP@R", "map_at_r"),
    ):
        yield f"  {label:<22} {_number(figures[key])}"
    yield from _class_lines(figures["per_class"])
    yield from _outsider_lines(figures["outsiders"])
    if figures["copies_of_references"]:
        yield (
            f"  note: {figures['copies_of_references']} pictures look just like references of the "
            "gallery; on its own references a gallery seems better than it is"
        )
    masks, of_references = figures["masks"], figures["masks_of_references"]
    if of_references not in ("", masks):
        yield f"  note: masks are {masks}, those of the gallery's references {of_references}"
    for sentence in figures["skipped"]:
        yield f"  skipped: {sentence}"


def _classes(rows: list[dict[str, Any]]) -> str:
    count = sum(row["pictures"] > 0 for row in rows)
    return f"{count} class" if count == 1 else f"{count} classes"


def _share(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    counts = f"{value['count']} of {value['of']}"
    return f"{value['share']:.4f}  ({low:.4f} to {high:.4f}, {counts})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _class_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    width = max(len(row["class"]) for row in rows)
    yield f"  {'class':<{width}}  pictures  precision  recall      f1     auc  rejected"
    for row in rows:
        yield (
            f"  {row['class']:<{width}}  {row['pictures']:>8}  {row['precision']:>9.4f}  "
            f"{row['recall']:.4f}  {row['f1']:.4f}  {_number(row['auc']):>6}  {row['rejected']:>8}"
        )


def _outsider_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    width = max(8, *(len(row["class"]) for row in rows))
    yield f"  {'outsider':<{width}}  pictures  rejected  mostly nearest to"
    for row in rows:
        yield (
            f"  {row['class']:<{width}}  {row['pictures']:>8}  {row['rejected']:>8}  "
            f"{row['nearest']}"
        )
