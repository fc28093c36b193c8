"""float32 and int8 of one embedder on the CPU: speed and retrieval, every back end in one run."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.benchmarks.environment import environment, load_average
from tk.benchmarks.int8_report import MARKDOWN, REFERENCE, write_results
from tk.benchmarks.latency import Candidate, Plan, Samples, measure
from tk.runtime.backends.base import Session
from tk.runtime.bundle import Bundle
from tk.runtime.choice import Pair, read_wish
from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing, refuse_inputs
from tk.runtime.gallery.references import find_references
from tk.runtime.images import read_image
from tk.runtime.metrics.intervals import wilson
from tk.runtime.metrics.retrieval import nearest
from tk.runtime.preprocess import ImageSpec, fit


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """What to measure.

    Attributes:
        bundle: of an embedder, with graphs in several precisions.
        gallery: crops that are searched, `DIR/<class>/cropped/*`.
        queries: crops that are looked for, of the same classes.
        batches: sizes to time.
        repeats: timed calls of each pair and batch.
        threads: of every engine; 0 for all cores.
        limit: most crops of each folder, 0 for all.
    """

    bundle: Path
    gallery: Path
    queries: Path
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 30
    threads: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Crops:
    """Crops on the canvas of a model.

    Attributes:
        canvases: (N, H, W, 3) uint8.
        names: (N,) class of each.
    """

    canvases: NDArray[np.uint8]
    names: NDArray[np.str_]


def bench_int8(out: Path, options: Int8Options, *, overwrite: bool = False) -> dict[str, Any]:
    """Time and score all pairs of a bundle that passed the gate and run here.

    Time is taken as `tk.benchmarks.latency` says: warm, by turns, nothing clipped.

    Raises:
        TkError: no such bundle, crops, or no pair.
    """
    refuse_inputs(
        out,
        {"--bundle": options.bundle, "--gallery": options.gallery, "--queries": options.queries},
    )
    refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    facts = environment(options.threads)
    bundle = Bundle.open(options.bundle, "embedder")
    spec = bundle.manifest.image
    gallery = load_crops(options.gallery, spec, options.limit)
    queries = load_crops(options.queries, spec, options.limit)
    device = read_wish("auto", "auto", "auto").device
    pairs = [p for p in bundle.pairs("model") if p.passed and not p.refusal(device)]
    if REFERENCE not in {(p.artifact.precision, p.backend.name) for p in pairs}:
        raise TkError(
            f"{options.bundle} has no float32 graph that passed its gate in ONNX Runtime",
            expected="what the other pairs are compared with",
            found=", ".join(map(str, pairs)) or "no pair that runs on this machine",
        )
    sessions = {str(pair): bundle.open_pair(pair, threads=options.threads) for pair in pairs}
    timed = {batch: _time(sessions, queries.canvases, options, batch) for batch in options.batches}
    samples = {key: {batch: calls[key] for batch, calls in timed.items()} for key in sessions}
    found = {key: _embed(session, gallery, queries) for key, session in sessions.items()}
    for session in sessions.values():
        session.close()
    reference = found[
        next(str(p) for p in pairs if (p.artifact.precision, p.backend.name) == REFERENCE)
    ]
    results = {
        "environment": {**facts, "load_average_after": load_average()},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "model": {
            "id": bundle.manifest.settings.get("model_id"),
            "parameters": bundle.manifest.source.get("parameters"),
            "canvas": [spec.height, spec.width],
        },
        "crops": {"gallery": len(gallery.names), "queries": len(queries.names)},
        "rows": [
            _row(pair, samples[str(pair)], found[str(pair)], reference, gallery, queries)
            for pair in pairs
        ],
        "runs": {
            key: {str(batch): {"wall": c.wall, "cpu": c.cpu} for batch, c in by_batch.items()}
            for key, by_batch in samples.items()
        },
    }
    write_results(out, results, overwrite=overwrite)
    return results


def load_crops(folder: Path, spec: ImageSpec, limit: int) -> Crops:
    """Crops on the canvas, spread over the classes when there is a limit."""
    references = find_references(folder)
    if limit and len(references) > limit:
        chosen = np.linspace(0, len(references) - 1, limit).round().astype(int)
        references = [references[index] for index in chosen]
    canvases = [fit(spec, read_image(reference.file))[0] for reference in references]
    return Crops(np.stack(canvases), np.asarray([r.class_name for r in references]))


def _time(
    sessions: dict[str, Session], canvases: NDArray[np.uint8], options: Int8Options, batch: int
) -> dict[str, Samples]:
    """Key of a pair -> its timed calls; each call gets the next crops."""
    print(f"time batch {batch}: {', '.join(sessions)}", file=sys.stderr)
    plan = Plan(samples=options.repeats, least=options.repeats)
    return measure({key: _call(s, canvases, batch) for key, s in sessions.items()}, plan)


def _call(session: Session, canvases: NDArray[np.uint8], batch: int) -> Candidate:
    turns = count()

    def call() -> object:
        return session.run({"image": batches[next(turns) % len(batches)]})

    starts = range(0, len(canvases), batch)
    batches = [canvases[(np.arange(batch) + start) % len(canvases)] for start in starts]
    return call


Embeddings = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of gallery and queries, (N, D)."""


def _embed(session: Session, gallery: Crops, queries: Crops) -> Embeddings:
    size = session.part.max_batch

    def embed(canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = [
            session.run({"image": canvases[start : start + size]})["embedding"]
            for start in range(0, len(canvases), size)
        ]
        return np.asarray(np.concatenate(rows), np.float32)

    return embed(gallery.canvases), embed(queries.canvases)


def _row(
    pair: Pair,
    samples: dict[int, Samples],
    found: Embeddings,
    reference: Embeddings,
    gallery: Crops,
    queries: Crops,
) -> dict[str, Any]:
    best = nearest(found[1], found[0], 1)[0][:, 0]
    theirs = nearest(reference[1], reference[0], 1)[0][:, 0]
    right = int((gallery.names[best] == queries.names).sum())
    low, high = wilson(right, len(best))
    cosines = (found[1] * reference[1]).sum(1)
    return {
        "precision": pair.artifact.precision,
        "backend": pair.backend.name,
        "bytes": pair.artifact.bytes,
        "latency": {str(batch): calls.figures() for batch, calls in samples.items()},
        "recall_at_1": {"value": right / len(best), "low": low, "high": high},
        "same_neighbour": float((best == theirs).mean()),
        "cosine": {"mean": float(cosines.mean()), "min": float(cosines.min())},
    }
