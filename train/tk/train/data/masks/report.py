"""What became of each crop: counts for the terminal and a CSV file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tk.runtime.files import write_bytes

COLUMNS = ("crop", "result", "reason", "iou", "area")


@dataclass(frozen=True)
class Outcome:
    """One crop that had no mask, or had one that cannot be used.

    Attributes:
        crop: the file, relative to the data root.
        result: `made`; `skipped`, so it has no mask; `unusable`, so it has one that training
            ignores.
        reason: why, for all but `made`; what follows a colon is detail.
        iou: IoU predicted by the model, 0..1, if it was asked.
        area: share of the crop under the mask, 0..1, if the model was asked.
    """

    crop: str
    result: Literal["made", "skipped", "unusable"]
    reason: str = ""
    iou: float | None = None
    area: float | None = None


@dataclass(frozen=True)
class MaskReport:
    """The outcome of one run.

    Attributes:
        crops: how many crops there are.
        present: how many of them had a good mask before.
        outcomes: all others that were looked at, in their order.
    """

    crops: int
    present: int
    outcomes: tuple[Outcome, ...] = ()

    @property
    def made(self) -> int:
        """Masks written."""
        return sum(item.result == "made" for item in self.outcomes)

    @property
    def skipped(self) -> tuple[Outcome, ...]:
        """Crops that are still without a mask."""
        return tuple(item for item in self.outcomes if item.result == "skipped")

    @property
    def unusable(self) -> tuple[Outcome, ...]:
        """Crops whose mask file was there, cannot be used and was left alone."""
        return tuple(item for item in self.outcomes if item.result == "unusable")

    def summary(self) -> str:
        """One line for the terminal, with the reasons by their number."""
        parts = [f"{self.crops} crops: {self.present} had a mask, {self.made} made"]
        for name, items in (("skipped", self.skipped), ("with an unusable mask", self.unusable)):
            if items:
                parts.append(f"{len(items)} {name} ({_reasons(items)})")
        return ", ".join(parts)


def _reasons(items: Sequence[Outcome]) -> str:
    counts = Counter(item.reason.split(":")[0] for item in items)
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common())


def write_report(path: Path, report: MaskReport) -> None:
    """Write the outcomes as CSV (UTF-8), atomically; an empty field means not known."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for item in report.outcomes:
        numbers = ("" if value is None else f"{value:.4f}" for value in (item.iou, item.area))
        rows.writerow((item.crop, item.result, item.reason, *numbers))
    write_bytes(path, text.getvalue().encode("utf-8-sig", "backslashreplace"))
