"""`tk classify`: a folder of pictures in, a class for each out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.bundle import Bundle
from tk.runtime.classify.journal import JOURNAL, Journal, pictures_digest
from tk.runtime.classify.results import (
    CONFUSION,
    CSV,
    JSON,
    PICTURES,
    SUMMARY,
    write_results,
)
from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import locked
from tk.runtime.heads.classifier import Classifier
from tk.runtime.images import MAX_PIXELS, find_images, read_image, relative_name
from tk.runtime.preprocess import Image
from tk.runtime.progress import progress

RESULTS = (CSV, JSON, SUMMARY, CONFUSION)

THREADS = 4
"""Threads that decode, at most; a batch is decoded while the one before it is classified."""


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """What a run can be told.

    Attributes:
        device, precision, backend, threads: of the session.
        samples: pictures on the contact sheet of a class; 0 draws none.
        max_pixels: larger images become rows with an error.
    """

    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    threads: int = 0
    samples: int = 40
    max_pixels: int = MAX_PIXELS


def classify(
    images: Path,
    out: Path,
    bundle: Path,
    options: ClassifyOptions,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Classify a folder of pictures; goes on where an interrupted run of the same stopped.

    Args:
        images: a folder, searched with its sub-folders, or one picture.
        out: gets `predictions.csv`, `predictions.json`, `summary.json`, `pictures/`, and
            `confusion.csv` where folders say the truth.
        bundle: of a classifier that sees pictures.
        options: see `ClassifyOptions`.
        overwrite: replace the results of an earlier run in `out`.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        TkError: bad input, or results of another run in `out`.
        Interrupted: Ctrl-C; what was finished is kept in the journal.
    """
    with locked(out, busy=f"another tk classify is at work in {out}"):
        return _classify(images, out, bundle, options, overwrite)


def _classify(
    images: Path, out: Path, bundle: Path, options: ClassifyOptions, overwrite: bool
) -> dict[str, Any]:
    _refuse(out, overwrite)
    own = out.resolve()
    files = [file for file in find_images(images) if own not in file.resolve().parents]
    if not files:
        raise TkError(f"no images under {images} but those of {out}")
    names = [relative_name(file, images) for file in files]
    model = Classifier(
        Bundle.open(bundle, "classifier"),
        device=options.device,
        precision=options.precision,
        backend=options.backend,
        threads=options.threads,
    )
    session = model.session
    try:
        identity = {
            "model": model.sha256,
            "session": f"{session.precision} on {session.backend}",
            "pictures": pictures_digest(names, files),
        }
        if overwrite:  # not before everything that it needs is open
            _remove(out)
        journal = Journal(out, identity)
        resumed = journal.done
        started = time.perf_counter()
        _run(model, files, names, journal, options)
        seconds = time.perf_counter() - started
    finally:
        session.close()
    facts = {
        "resumed_after": resumed,
        "seconds": round(seconds, 3),
        "seconds_in_engine": round(session.seconds, 3),
        "bundle": bundle.name,
        "session": {
            "name": session.name,
            "backend": session.backend,
            "precision": session.precision,
            "why": session.why,
            "calls": session.calls,
        },
    }
    return write_results(out, journal, files, model.classes, facts, options.samples)


def _refuse(out: Path, overwrite: bool) -> None:
    """Refuse results of an earlier run that are not to be replaced."""
    if out.is_file():
        raise TkError(f"{out} is a file", expected="a folder for the results")
    # A journal beside them is of a run that was killed while it wrote them: it goes on.
    there = [name for name in (*RESULTS, PICTURES) if (out / name).exists()]
    if there and not overwrite and not (out / JOURNAL).exists():
        raise TkError(
            f"{out} already holds {there[0]} of an earlier run",
            fix="choose another folder, or add --overwrite to replace its results",
        )
    if (out / PICTURES).exists() and not any((out / name).exists() for name in (CSV, JOURNAL)):
        raise TkError(
            f"{out} holds {PICTURES} of something else than tk classify",
            expected=f"no {PICTURES}, or {CSV} beside it",
            fix="choose another folder",
        )


def _remove(out: Path) -> None:
    """Remove the results of an earlier run, and nothing else that lies in the folder."""
    for name in (*RESULTS, JOURNAL):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / PICTURES, ignore_errors=True)


def _run(
    model: Classifier,
    files: Sequence[Path],
    names: Sequence[str],
    journal: Journal,
    options: ClassifyOptions,
) -> None:
    """Send the pictures that are not in the journal through the model."""

    def read(file: Path) -> Image | str:
        try:
            return model.canvas(read_image(file, options.max_pixels))
        except TkError as error:
            return error.what

    start = journal.done
    try:
        with (
            progress("classify", len(files) - start) as bar,
            closing(_batches(files[start:], model.max_batch, read)) as batches,
        ):
            for batch in batches:
                given = names[journal.done : journal.done + len(batch)]
                journal.add(_records(given, batch, model))
                bar.advance(len(batch))
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {journal.done} of {len(files)} images are in {journal.path}",
            fix="the same command goes on after them",
        ) from None
    finally:
        journal.close()


def _batches(
    files: Sequence[Path], size: int, read: Callable[[Path], Image | str]
) -> Generator[list[Image | str], None, None]:
    """Read a batch ahead in threads: at most two batches are in memory."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="decode")

    def begin(start: int) -> list[Future[Image | str]]:
        return [pool.submit(read, file) for file in files[start : start + size]]

    try:
        coming = begin(0)
        for start in range(0, len(files), size):
            current, coming = coming, begin(start + size)
            yield [future.result() for future in current]
    finally:
        pool.shutdown(cancel_futures=True)


def _records(
    names: Sequence[str], batch: Sequence[Image | str], model: Classifier
) -> list[dict[str, Any]]:
    """Records of a batch, in its order; pictures that could not be read have an error."""
    rows = iter(model.run([one for one in batch if not isinstance(one, str)]))
    return [
        _failed(name, one) if isinstance(one, str) else _record(name, next(rows), model.classes)
        for name, one in zip(names, batch, strict=True)
    ]


def _failed(name: str, error: str) -> dict[str, Any]:
    return {
        "image": name,
        "class": None,
        "probability": None,
        "second_class": None,
        "second_probability": None,
        "error": error,
    }


def _record(name: str, row: NDArray[np.float32], classes: Sequence[str]) -> dict[str, Any]:
    order = np.argsort(-row, kind="stable")
    ranked = [(classes[place], round(float(row[place]), 6)) for place in order[:5]]
    second = ranked[1] if len(ranked) > 1 else (None, None)
    return {
        "image": name,
        "class": ranked[0][0],
        "probability": ranked[0][1],
        "second_class": second[0],
        "second_probability": second[1],
        "ranked": [{"name": kind, "score": value} for kind, value in ranked],
    }
