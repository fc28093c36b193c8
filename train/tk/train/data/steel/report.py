"""What the commands say at their end: counts by class, and all that was left out."""

from __future__ import annotations

from pathlib import Path

from tk.train.data.steel.layout import class_label
from tk.train.data.steel.patches import DRAWN, PatchSummary
from tk.train.data.steel.prepare import PrepareSummary

_UNEVEN = 3
"""From this ratio of classes on the reader is told what it does to accuracy."""


def prepare_lines(out: Path, summary: PrepareSummary) -> list[str]:
    """Lines for the terminal."""
    lines = [f"{out}: {summary.images} images, {summary.without} without a defect"]
    total = max(1, sum(found["boxes"] for found in summary.counts.values()))
    for kind, found in summary.counts.items():
        share = found["boxes"] / total
        lines.append(
            f"  {class_label(kind):<10} {found['boxes']:>6} boxes ({share:.1%})"
            f" in {found['images']} images"
        )
    for number, words in (
        (summary.small, "parts of masks too small for a box, left out"),
        (summary.empty, "rows of the table with an empty mask"),
        (summary.repeated, "rows of the table that repeat another"),
        (len(summary.missing), "images of the table missing, left out"),
        (len(summary.unreadable), "images unreadable, left out"),
    ):
        if number:
            lines.append(f"  {number} {words}")
    lines += [f"  {why}" for why in list(summary.unreadable.values())[:3]]
    lines.append(f"next: tk data patches {out} PATCHES; tk train detector --data {out} --out RUN")
    return lines


def patch_lines(out: Path, summary: PatchSummary) -> list[str]:
    """Lines for the terminal."""
    total = sum(summary.counts.values())
    lines = [f"{out}: {total} patches of {summary.images} images"]
    for name, weight in summary.weights().items():
        count = summary.counts[name]
        lines.append(f"  {name:<10} {count:>6} ({count / total:.1%}), balanced weight {weight:.2f}")
    if summary.imbalance() >= _UNEVEN:
        most = max(summary.counts, key=lambda name: summary.counts[name])
        lines.append(
            f"  uneven, {summary.imbalance():.1f} to 1: saying {most} always is right in "
            f"{summary.counts[most] / total:.1%}; look at macro-F1 beside accuracy"
        )
    if summary.left_out:
        lines.append(f"  {summary.left_out} more defects left out by --max-per-image")
    if summary.unreadable:
        lines.append(f"  {len(summary.unreadable)} images unreadable, left out")
        lines += [f"  {why}" for why in list(summary.unreadable.values())[:3]]
    if (out / DRAWN).is_dir():
        lines.append(f"  pictures of what was cut: {out / DRAWN}")
    lines.append(f"next: tk train embedder --data {out} --out RUN")
    return lines
