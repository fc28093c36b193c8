"""The annotator: photos in, records and pictures out.

detect -> segment -> crop -> embed -> search -> assign -> records -> files
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tk.runtime.annotate.groups import Group, Item, Stage, make_groups
from tk.runtime.annotate.output import (
    JOURNAL,
    PREDICTIONS,
    STAGES,
    SUMMARY,
    Output,
    picture_names,
)
from tk.runtime.annotate.stages import Assign, Decode, Detect, Embed, Segment, free_pictures
from tk.runtime.assign import Mode
from tk.runtime.bundle import Bundle
from tk.runtime.draw import class_colors
from tk.runtime.errors import EnvironmentLacks, Interrupted, TkError
from tk.runtime.files import write_json
from tk.runtime.gallery.build import build_gallery
from tk.runtime.gallery.gallery import FACTS, PROTOTYPES, Gallery, SearchMode, open_gallery
from tk.runtime.gallery.search import PrototypeSearch
from tk.runtime.heads.detector import Detector, DetectorOptions
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.heads.text_detector import TextOptions, open_detector
from tk.runtime.images import MAX_PIXELS, find_images, relative_name
from tk.runtime.progress import progress


@dataclass(frozen=True)
class Models:
    """Where the three bundles are."""

    detector: Path
    segmenter: Path
    embedder: Path


@dataclass(frozen=True)
class AnnotateOptions:
    """What a run can be told; the defaults are those of the original annotator where it had one.

    Attributes:
        detector: thresholds of the detector.
        text: prompt of a text detector, and the threshold of its phrases.
        search: compare with class centroids, every reference, or sub-prototypes.
        assign: `unique` gives each class at most once, by optimal assignment; see `assign`.
        unknown_threshold: least similarity of an accepted class; None takes the gallery's own.
        batch_size: pictures that share a batch.
        device, precision, backend, threads: of the sessions.
        masks: write `mask_rle`.
        pictures: draw one picture per image.
        picture_size: longer side of drawn pictures, pixels.
        max_pixels: larger images become records with an error.
        limit: only the first so many images, 0 for all.
    """

    detector: DetectorOptions = field(default_factory=DetectorOptions)
    text: TextOptions = field(default_factory=TextOptions)
    search: SearchMode = "centroid"
    assign: Mode = "unique"
    unknown_threshold: float | None = None
    batch_size: int = 4
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    threads: int = 0
    masks: bool = True
    pictures: bool = True
    picture_size: int = 1600
    max_pixels: int = MAX_PIXELS
    limit: int = 0


class Chain:
    """The three models and the gallery, opened once."""

    def __init__(self, models: Models, gallery: Path, options: AnnotateOptions) -> None:
        session: dict[str, Any] = {
            "device": options.device,
            "precision": options.precision,
            "backend": options.backend,
            "threads": options.threads,
        }
        detector = Bundle.open(models.detector, "detector")
        self.detector: Detector = open_detector(detector, options.detector, options.text, **session)
        self.segmenter = Segmenter(Bundle.open(models.segmenter, "segmenter"), **session)
        self.embedder = Embedder(Bundle.open(models.embedder, "embedder"), **session)
        self.gallery = load_gallery(gallery, self.embedder)
        self.search = PrototypeSearch(self.gallery, options.search, options.device)
        self.threshold = (
            self.gallery.thresholds.get(options.search, -1.0)
            if options.unknown_threshold is None
            else options.unknown_threshold
        )

    @property
    def sessions(self) -> list[Any]:
        """All sessions, in the order of the chain."""
        return [*self.detector.sessions, *self.segmenter.sessions, *self.embedder.sessions]

    def close(self) -> None:
        """Free the engines."""
        for session in self.sessions:
            session.close()


def load_gallery(path: Path, embedder: Embedder) -> Gallery:
    """Open a gallery folder or a bare npz, or build one in memory from reference pictures.

    Raises:
        TkError: it does not go with `embedder`.
    """
    if not path.exists():
        raise TkError(
            f"gallery {path} does not exist",
            expected=f"a folder from `tk gallery build`, a {PROTOTYPES}, or reference pictures",
        )
    if path.is_dir() and (path / PROTOTYPES).is_file() and not (path / FACTS).is_file():
        path = path / PROTOTYPES
    if path.is_dir() and not (path / FACTS).is_file():
        return build_gallery(path, embedder)[0]
    gallery = open_gallery(path)
    gallery.check_embedder(embedder)
    return gallery


def annotate(
    images: Path,
    out: Path,
    models: Models,
    gallery: Path,
    options: AnnotateOptions,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Annotate a folder of pictures.

    Args:
        images: a folder, searched with its sub-folders, or one picture.
        out: gets `predictions.json`, `timings.csv`, `summary.json` and `pictures/`.
        models: the bundles.
        gallery: a gallery folder, a `prototypes.npz`, or reference pictures.
        options: see `AnnotateOptions`.
        overwrite: replace the results of an earlier run in `out`.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        TkError: bad input, or results of another run in `out`.
        EnvironmentLacks: the results cannot be written (a full disk); the journal is kept.
        Interrupted: Ctrl-C, after what was finished has been written.
    """
    _refuse_results(out, overwrite)
    files = find_images(images)[: options.limit or None]
    items = [Item(file, relative_name(file, images)) for file in files]
    _refuse_equal_names(items)
    chain = Chain(models, gallery, options)
    names = picture_names([item.name for item in items]) if options.pictures else {}
    output = Output(out, names, options.picture_size, class_colors(chain.gallery.classes))
    try:
        totals, wall, interrupted = _run(items, chain, options, output)
        output.finish()
        summary = _summary(output, chain, options, totals, wall)
        write_json(out / SUMMARY, summary)
    except OSError as error:
        raise EnvironmentLacks(
            f"the results cannot be written to {out}: {error.strerror or error}",
            found=f"what was finished is in {out / JOURNAL}, one record per line",
            fix="make room there (or choose another folder) and run again with --overwrite",
        ) from error
    finally:
        chain.close()
    if interrupted:
        done = f"{output.tally.images} of {len(items)} images are in {out / PREDICTIONS}"
        raise Interrupted(f"interrupted: {done}")
    return summary


def _run(
    items: list[Item], chain: Chain, options: AnnotateOptions, output: Output
) -> tuple[dict[str, float], float, bool]:
    """Send all pictures through the stages.

    Returns:
        Seconds by stage, wall seconds, and whether Ctrl-C ended it early.
    """
    started = time.perf_counter()
    totals = dict.fromkeys(STAGES, 0.0)
    interrupted = False
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        stages = make_stages(chain, options, threads, output)
        try:
            with progress("annotate", len(items)) as bar:
                for group in run_stages(make_groups(items, options.batch_size), stages):
                    output.add_timings(group)
                    for item in group.items:
                        for stage, seconds in item.seconds.items():
                            totals[stage] += seconds
                    bar.advance(len(group.items))
                    free_pictures(group)
        except KeyboardInterrupt:
            interrupted = True
    return totals, time.perf_counter() - started, interrupted


def make_stages(
    chain: Chain, options: AnnotateOptions, threads: ThreadPoolExecutor, output: Output
) -> list[Stage]:
    """Build the stages of a run, in order."""
    assign = Assign(chain.search, chain.threshold, options.assign, options.masks)
    return [
        Stage("decode", "io", Decode(threads, options.max_pixels)),
        Stage("detect", "engine", Detect(chain.detector)),
        Stage("segment", "engine", Segment(chain.segmenter)),
        Stage("embed", "engine", Embed(chain.embedder)),
        Stage("assign", "cpu", assign),
        Stage("save", "io", output.save),
    ]


def run_stages(groups: Iterable[Group], stages: list[Stage]) -> Iterator[Group]:
    """Run every group through all stages, one after the other.

    The time of a stage is shared equally by the pictures that it worked on: unreadable ones take
    no part in the engines.
    """
    for group in groups:
        for stage in stages:
            started = time.perf_counter()
            stage.run(group)
            seconds = time.perf_counter() - started
            busy = group.good if stage.resource == "engine" else group.items
            for item in busy:
                item.seconds[stage.name] = seconds / len(busy)
        yield group


def _refuse_results(out: Path, overwrite: bool) -> None:
    if out.is_file():
        raise TkError(f"{out} is a file", expected="a folder for the results")
    there = [name for name in (PREDICTIONS, JOURNAL) if (out / name).exists()]
    if there and not overwrite:
        raise TkError(
            f"{out} already holds {there[0]} of an earlier run",
            fix="choose another folder, or add --overwrite to replace its results",
        )


def _refuse_equal_names(items: list[Item]) -> None:
    """Two names that differ only in Unicode normalisation would share one record name."""
    seen: dict[str, Path] = {}
    for item in items:
        other = seen.setdefault(item.name, item.path)
        if other is not item.path:
            raise TkError(
                f"two photos have the same name {item.name!r} once it is normalised (NFC)",
                found=f"{other.name!a} and {item.path.name!a}",
                fix="rename one of them",
            )


def _summary(
    output: Output, chain: Chain, options: AnnotateOptions, totals: dict[str, float], wall: float
) -> dict[str, Any]:
    tally = output.tally
    engine = sum(session.seconds for session in chain.sessions)
    return {
        "images": tally.images,
        "errors": tally.errors,
        "detections": tally.detections,
        "unknown": tally.unknown,
        "dropped_empty_masks": tally.dropped_empty_masks,
        "classes": dict(sorted(tally.classes.items())),
        "seconds": round(wall, 3),
        "seconds_by_stage": {stage: round(value, 3) for stage, value in totals.items()},
        "seconds_in_engines": round(engine, 3),
        "unknown_threshold": chain.threshold,
        "sessions": [
            {
                "name": s.name,
                "backend": s.backend,
                "precision": s.precision,
                "why": s.why,
                "calls": s.calls,
            }
            for s in chain.sessions
        ],
        "search": chain.search.place,
        "options": asdict(options),
    }
