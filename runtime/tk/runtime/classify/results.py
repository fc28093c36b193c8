"""What a finished run leaves: predictions.csv, predictions.json, summary.json, contact sheets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tk.runtime.classify.journal import Journal
from tk.runtime.classify.scores import NOT_KNOWN, score, true_class
from tk.runtime.classify.sheets import Tile, sample, sheet_name, write_sheet
from tk.runtime.files import atomic_folder, atomic_path, write_json
from tk.runtime.records import write_predictions

CSV, JSON, SUMMARY, CONFUSION = (
    "predictions.csv",
    "predictions.json",
    "summary.json",
    "confusion.csv",
)
PICTURES = "pictures"
COLUMNS = ("image", "class", "probability", "second_class", "second_probability", "error")


@dataclass
class Seen:
    """What is kept of all records, a few numbers each.

    Attributes:
        predicted: place of the class, -1 for a picture that could not be read.
        probability: of that class, 0..1.
        true: place of the true class, -1 where it is not known.
    """

    predicted: list[int] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    true: list[int] = field(default_factory=list)


def write_results(
    out: Path,
    journal: Journal,
    files: Sequence[Path],
    classes: Sequence[str],
    facts: dict[str, Any],
    samples: int,
) -> dict[str, Any]:
    """Write everything from the closed journal, and remove the journal last.

    Args:
        out: the folder.
        journal: a record per picture.
        files: the pictures, in the same order.
        classes: of the model.
        facts: for the summary.
        samples: pictures on the sheet of a class; 0 draws none.

    Returns:
        The summary, as in `summary.json`.
    """
    seen = _write_csv(out / CSV, journal, classes)
    write_predictions(out / JSON, journal.lines())
    readable = [place for place, kind in enumerate(seen.predicted) if kind != NOT_KNOWN]
    scored = score(
        [seen.true[place] for place in readable],
        [seen.predicted[place] for place in readable],
        classes,
    )
    (out / CONFUSION).unlink(missing_ok=True)
    if scored is not None:
        _write_confusion(out / CONFUSION, scored["confusion"], classes)
    if samples:
        with atomic_folder(out / PICTURES, overwrite=True, own="*") as folder:
            _write_sheets(folder, journal, seen, files, classes, samples)
    summary = {
        "images": len(files),
        "errors": len(files) - len(readable),
        "classes": {kind: seen.predicted.count(place) for place, kind in enumerate(classes)},
        **facts,
        "by_folder": scored,
    }
    write_json(out / SUMMARY, summary)
    journal.path.unlink()
    return summary


def _write_csv(path: Path, journal: Journal, classes: Sequence[str]) -> Seen:
    seen, place = Seen(), {kind: number for number, kind in enumerate(classes)}
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for line in journal.lines():
            record = orjson.loads(line)
            writer.writerow(["" if (v := record.get(key)) is None else v for key in COLUMNS])
            seen.predicted.append(place.get(record["class"], NOT_KNOWN))
            seen.probability.append(record["probability"] or 0.0)
            seen.true.append(true_class(record["image"], classes))
    return seen


def _write_confusion(path: Path, table: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true \\ predicted", *classes])
        writer.writerows([kind, *row] for kind, row in zip(classes, table, strict=True))


def _write_sheets(
    folder: Path,
    journal: Journal,
    seen: Seen,
    files: Sequence[Path],
    classes: Sequence[str],
    samples: int,
) -> None:
    chosen: dict[int, list[int]] = {}
    for kind in range(len(classes)):
        own = [place for place, found in enumerate(seen.predicted) if found == kind]
        chosen[kind] = [own[i] for i in sample([seen.probability[p] for p in own], samples)]
    wanted = {place for places in chosen.values() for place in places}
    records = {
        place: orjson.loads(line) for place, line in enumerate(journal.lines()) if place in wanted
    }
    for kind, places in chosen.items():
        if places:
            total = seen.predicted.count(kind)
            title = f"{classes[kind]}: {len(places)} of {total}, most doubtful first"
            tiles = [_tile(records[p], files[p], seen.true[p], kind, classes) for p in places]
            write_sheet(folder / sheet_name(kind, classes[kind]), title, tiles)


def _tile(record: dict[str, Any], file: Path, true: int, kind: int, classes: Sequence[str]) -> Tile:
    second = record["second_class"]
    beside = "" if second is None else f", {second} {record['second_probability']:.2f}"
    wrong = true not in (NOT_KNOWN, kind)
    share = f"{record['probability']:.2f}"
    said = f"{share}; is {classes[true]}" if wrong else f"{share}{beside}"
    return Tile(file, (record["image"].rpartition("/")[2], said), wrong)
