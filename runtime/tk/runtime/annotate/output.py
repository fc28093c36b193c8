"""What the annotator writes: journal, predictions, timings, pictures.

The journal has one JSON line per picture, flushed; `predictions.json` is streamed from it at the
end, so that a crash loses nothing that was finished and memory stays bounded.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from tk.runtime.annotate.groups import Group, Item
from tk.runtime.draw import Color, Drawn, draw_detections
from tk.runtime.files import atomic_path
from tk.runtime.images import write_jpeg
from tk.runtime.masks import BoxMask
from tk.runtime.records import UNKNOWN, Detection, ImageRecord, write_predictions

JOURNAL, PREDICTIONS, TIMINGS, SUMMARY = (
    "journal.jsonl",
    "predictions.json",
    "timings.csv",
    "summary.json",
)
PICTURES = "pictures"
STAGES = ("detect", "segment", "embed", "decode", "assign", "save")
TIMING_COLUMNS = (
    *("image", "num_dets", "time_total", "time_det", "time_sam_total", "time_embed_total"),
    *("time_decode", "time_assign", "time_save"),
)
"""The first six are the seed's; `time_total` is the sum of all that follow it, in seconds."""


def picture_names(names: Sequence[str]) -> dict[str, str]:
    """Name the drawn picture of each image, relative to the output folder, POSIX.

    `a/b.jpg` becomes `pictures/a/b_ann_with_masks.jpg`; where two images of a folder share the
    stem, the extension stays in the name.
    """
    stems = Counter(str(PurePosixPath(name).with_suffix("")) for name in names)
    result = {}
    for name in names:
        path = PurePosixPath(name)
        shared = stems[str(path.with_suffix(""))] > 1
        stem = path.name if shared else path.stem
        result[name] = str(PurePosixPath(PICTURES) / path.parent / f"{stem}_ann_with_masks.jpg")
    return result


def _drawn(detection: Detection, mask: BoxMask) -> Drawn:
    score = "" if detection.score_metric is None else f" {detection.score_metric:.2f}"
    return Drawn(
        box=np.asarray(detection.bbox_xyxy, np.float32),
        label=detection.class_name + score,
        color_key=detection.class_name,
        mask=(mask.x, mask.y, mask.pixels),
        emphasis=detection.class_name == UNKNOWN,
    )


@dataclass
class Tally:
    """Counts over a run."""

    images: int = 0
    errors: int = 0
    detections: int = 0
    unknown: int = 0
    dropped_empty_masks: int = 0
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item, record: ImageRecord) -> None:
        """Count one picture."""
        self.images += 1
        self.errors += record.error is not None
        self.dropped_empty_masks += item.dropped
        for detection in record.detections:
            self.detections += 1
            self.unknown += detection.class_name == UNKNOWN
            self.classes[detection.class_name] += 1


class Output:
    """The output folder of one run.

    Args:
        folder: made if needed.
        pictures: image name -> relative path of its drawn picture; empty draws none.
        max_side: of drawn pictures, pixels.
        colors: class -> colour, the same in all pictures of a run.
    """

    def __init__(
        self, folder: Path, pictures: dict[str, str], max_side: int, colors: dict[str, Color]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.pictures = folder, pictures
        self.max_side, self.colors = max_side, colors
        self.tally = Tally()
        self._journal = open(folder / JOURNAL, "wb")
        self._rows: list[list[str]] = []

    def save(self, group: Group) -> None:
        """Write pictures and journal lines of one group, in order."""
        for item in group.items:
            record = item.record
            if record is None:
                raise ValueError(f"stage order: {item.name} has no record")
            self._draw(item, record)
            self._journal.write(record.to_line() + b"\n")
            self.tally.add(item, record)
        # Flushed to the operating system per group: kill -9 loses no finished group.
        self._journal.flush()

    def _draw(self, item: Item, record: ImageRecord) -> None:
        if item.name not in self.pictures or item.image is None:
            return
        pairs = zip(record.detections, item.candidates, strict=True)
        drawn = [_drawn(detection, candidate.mask) for detection, candidate in pairs]
        picture = draw_detections(item.image, drawn, max_side=self.max_side, colors=self.colors)
        write_jpeg(self.folder / self.pictures[item.name], picture)

    def add_timings(self, group: Group) -> None:
        """Remember the seconds of each picture of a group that went through all stages."""
        for item in group.items:
            count = len(item.record.detections) if item.record else 0
            times = [item.seconds.get(stage, 0.0) for stage in STAGES]
            cells = [f"{value:.4f}" for value in (sum(times), *times)]
            self._rows.append([item.name, str(count), *cells])

    def finish(self) -> None:
        """Stream `predictions.json` from the journal, write `timings.csv`, drop the journal."""
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._journal.close()
        with open(self.folder / JOURNAL, "rb") as lines:
            write_predictions(self.folder / PREDICTIONS, lines)
        with atomic_path(self.folder / TIMINGS) as path:
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(TIMING_COLUMNS)
                writer.writerows(self._rows)
        (self.folder / JOURNAL).unlink()
