"""float32 and int8 of one embedder on the CPU: speed and retrieval, every back end in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.benchmarks.int8_report import write_results
from tk.benchmarks.timing import environment, percentile
from tk.runtime.backends.base import Session
from tk.runtime.bundle import Bundle
from tk.runtime.choice import Pair, read_wish
from tk.runtime.errors import TkError
from tk.runtime.gallery.references import find_references
from tk.runtime.images import read_image
from tk.runtime.metrics.intervals import wilson
from tk.runtime.metrics.retrieval import nearest
from tk.runtime.preprocess import ImageSpec, fit
from tk.runtime.progress import progress

WARM_UP = 3
"""Calls before the timed ones: engines choose kernels and fill caches in the first."""


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

    Passes go by turns: each pair is called once, then each again, so that what else the machine
    does falls on all alike.

    Raises:
        TkError: no such bundle, crops, or no pair.
    """
    facts = environment(options.threads)
    bundle = Bundle.open(options.bundle, "embedder")
    spec = bundle.manifest.image
    gallery = load_crops(options.gallery, spec, options.limit)
    queries = load_crops(options.queries, spec, options.limit)
    device = read_wish("auto", "auto", "auto").device
    pairs = [p for p in bundle.pairs("model") if p.passed and not p.refusal(device)]
    if not pairs:
        raise TkError(f"no pair of {options.bundle} runs on this machine")
    sessions = {str(pair): bundle.open_pair(pair, threads=options.threads) for pair in pairs}
    samples = _time(sessions, queries.canvases, options)
    found = {key: _embed(session, gallery, queries) for key, session in sessions.items()}
    for session in sessions.values():
        session.close()
    reference = found[next(key for key in found if key.startswith("fp32 on onnxruntime-cpu"))]
    results = {
        "environment": {**facts, "load_average_after": [round(x, 2) for x in os.getloadavg()]},
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
        "runs": samples,
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


Samples = dict[str, dict[str, list[float]]]
"""Batch -> `wall` and `cpu` seconds of each call."""


def _time(
    sessions: dict[str, Session], canvases: NDArray[np.uint8], options: Int8Options
) -> dict[str, Samples]:
    samples: dict[str, Samples] = {
        key: {str(batch): {"wall": [], "cpu": []} for batch in options.batches} for key in sessions
    }
    total = len(options.batches) * (WARM_UP + options.repeats)
    with progress("time", total) as bar:
        for batch in options.batches:
            for turn in range(WARM_UP + options.repeats):
                rows = canvases[(np.arange(batch) + turn * batch) % len(canvases)]
                for key, session in sessions.items():
                    cpu, wall = time.process_time(), time.perf_counter()
                    session.run({"image": rows})
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                    if turn >= WARM_UP:
                        samples[key][str(batch)]["wall"].append(wall)
                        samples[key][str(batch)]["cpu"].append(cpu)
                bar.advance()
    return samples


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
    samples: Samples,
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
        "latency": {batch: _latency(times) for batch, times in samples.items()},
        "recall_at_1": {"value": right / len(best), "low": low, "high": high},
        "same_neighbour": float((best == theirs).mean()),
        "cosine": {"mean": float(cosines.mean()), "min": float(cosines.min())},
    }


def _latency(times: dict[str, Sequence[float]] | dict[str, list[float]]) -> dict[str, float]:
    return {
        "n": len(times["wall"]),
        "wall_p50": percentile(times["wall"], 50),
        "wall_p90": percentile(times["wall"], 90),
        "cpu_p50": percentile(times["cpu"], 50),
        "cpu_p90": percentile(times["cpu"], 90),
    }
