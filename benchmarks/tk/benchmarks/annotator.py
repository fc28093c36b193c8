"""`tk bench annotator`: the annotator against the plain PyTorch chain with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tk.benchmarks.equality import Equality, compare_records
from tk.benchmarks.quality import Quality, judge
from tk.benchmarks.reference_chain import STAGES, ReferenceChain
from tk.benchmarks.report import write_results
from tk.benchmarks.sources import open_sources
from tk.benchmarks.timing import Run, available_cores, environment, percentile
from tk.benchmarks.tk_chain import DECODERS, run_tk
from tk.runtime.annotate.annotator import AnnotateOptions, Chain, Models
from tk.runtime.annotate.output import PREDICTIONS
from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing
from tk.runtime.images import find_images
from tk.runtime.progress import progress
from tk.runtime.records import load_predictions

SIDES = ("pytorch", "tk")


@dataclass(frozen=True)
class BenchOptions:
    """What is compared, and how often.

    Attributes:
        images: a folder of pictures, or one.
        bundles: folder with the bundles detector, segmenter and embedder.
        gallery: as for `tk annotate`.
        source: folder with the training runs of the same names.
        truth: COCO annotations of the pictures, or None.
        predictions: records of `tk annotate` to score against `truth`, all of them; None scores
            what the benchmark itself found.
        limit: only the first so many pictures, 0 for all.
        repeats: passes of each chain, by turns.
        threads: of both sides; 0 takes the cores that this process may use.
        batch_size: pictures that share a batch in tk; the reference has none.
    """

    images: Path
    bundles: Path
    gallery: Path
    source: Path
    truth: Path | None = None
    predictions: Path | None = None
    limit: int = 0
    repeats: int = 3
    threads: int = 0
    batch_size: int = 4


def bench_annotator(out: Path, options: BenchOptions, *, overwrite: bool = False) -> dict[str, Any]:
    """Time both chains, compare what they find, and write the results.

    Args:
        out: gets results.json, results.md, results.csv and stages.png.
        options: see `BenchOptions`.
        overwrite: replace what is in `out`.

    Returns:
        What is in `results.json`; `problems` is empty when the chains find the same.

    Raises:
        TkError: bad input, or a bundle that was not made from the checkpoint given.
    """
    refuse_existing(out, overwrite=overwrite)
    if options.repeats < 1:
        raise TkError("a benchmark needs at least one repeat", found=str(options.repeats))
    files = find_images(options.images)[: options.limit or None]
    threads = options.threads or available_cores()
    facts = environment(threads)
    sources = open_sources(options.source, options.bundles)
    settings = AnnotateOptions(
        threads=threads, batch_size=options.batch_size, pictures=False, masks=True
    )
    models = Models(*(options.bundles / task for task in ("detector", "segmenter", "embedder")))
    with closing(Chain(models, options.gallery, settings)) as chain, _TorchThreads(threads):
        reference = ReferenceChain(sources, chain.gallery, chain.threshold, settings)
        passes: dict[str, Callable[[Sequence[Path], Path], Run]] = {
            "pytorch": lambda some, to: reference.run(some, options.images, to),
            "tk": lambda some, to: run_tk(chain, settings, some, options.images, to),
        }
        with tempfile.TemporaryDirectory(prefix="tk-bench-") as temporary:
            runs = _take_turns(passes, files, options, Path(temporary))
            equality, quality = _judge(Path(temporary), options)
        sessions = [
            {"name": s.name, "backend": s.backend, "precision": s.precision} for s in chain.sessions
        ]
    results = {
        "benchmark": "annotator",
        "problems": equality.problems,
        "environment": facts,
        "options": _shareable(options, len(files)),
        "method": _method(options, threads),
        "sessions": sessions,
        "summary": summarise(runs, len(files)),
        "equality": asdict(equality),
        "quality": quality.to_json() if quality else None,
        "quality_lines": quality.lines() if quality else [],
        "runs": {side: [asdict(run) for run in own] for side, own in runs.items()},
    }
    write_results(out, results, overwrite=overwrite)
    return results


def _take_turns(
    passes: dict[str, Callable[[Sequence[Path], Path], Run]],
    files: Sequence[Path],
    options: BenchOptions,
    temporary: Path,
) -> dict[str, list[Run]]:
    """Warm both sides up, then A B A B; records of the last pass stay in `temporary/SIDE`."""
    runs: dict[str, list[Run]] = {side: [] for side in passes}
    with progress("bench annotator", len(passes) * (1 + options.repeats)) as bar:
        for side, run in passes.items():
            run(files[: options.batch_size], temporary / side)
            bar.advance(note=f"{side} warm-up")
        for _ in range(options.repeats):
            for side, run in passes.items():
                runs[side].append(run(files, temporary / side))
                bar.advance(note=f"{side} {runs[side][-1].seconds:.2f} s")
    return runs


def _judge(folder: Path, options: BenchOptions) -> tuple[Equality, Quality | None]:
    reference = load_predictions(folder / "pytorch" / PREDICTIONS)
    found = load_predictions(folder / "tk" / PREDICTIONS)
    equality = compare_records(reference, found)
    if options.truth is None:
        return equality, None
    scored = load_predictions(options.predictions) if options.predictions else found
    return equality, judge(scored, options.truth)


class _TorchThreads:
    """Give PyTorch so many threads while the body runs."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def summarise(runs: dict[str, list[Run]], images: int) -> dict[str, Any]:
    """Turn raw samples into the figures of the table.

    Args:
        runs: side -> its passes; equal numbers, taken by turns.
        images: pictures per pass.

    Returns:
        `rows`: per stage, and for the total with and without `encode`: milliseconds per picture of
        each side (median over passes) and their ratio; `ratio_range` of the total over pairs of
        passes; per side `images_per_second`, `p50_ms`, `p90_ms` and `peak_rss_mb`; `efficiency`.
    """
    rows = [_row(stage, runs, images, _of_stage(stage)) for stage in STAGES]
    rows.append(_row("total", runs, images, lambda run: run.seconds))
    rows.append(_row("total without encode", runs, images, without_encode))
    pairs = list(zip(runs["pytorch"], runs["tk"], strict=True))
    ratios = [a.seconds / b.seconds for a, b in pairs]
    shares = [(run.engine or 0.0) / run.seconds for run in runs["tk"]]
    return {
        "rows": rows,
        "ratio_range": [min(ratios), max(ratios)],
        "ratio_range_without_encode": [
            pick(without_encode(a) / without_encode(b) for a, b in pairs) for pick in (min, max)
        ],
        "efficiency": median(shares),
        "engine_ms": median((run.engine or 0.0) for run in runs["tk"]) / images * 1e3,
        "sides": {side: _side(own, images) for side, own in runs.items()},
    }


def _of_stage(stage: str) -> Callable[[Run], float]:
    return lambda run: run.stages[stage]


def without_encode(run: Run) -> float:
    """Wall seconds of a pass less those of writing masks and JSON."""
    return run.seconds - run.stages["encode"]


def _row(
    name: str, runs: dict[str, list[Run]], images: int, value: Callable[[Run], float]
) -> dict[str, Any]:
    pytorch, tk = (median(value(run) for run in runs[side]) / images * 1e3 for side in SIDES)
    ratio = pytorch / tk if tk else float("nan")
    return {"stage": name, "pytorch_ms": pytorch, "tk_ms": tk, "ratio": ratio}


def _side(runs: Sequence[Run], images: int) -> dict[str, Any]:
    samples = [seconds * 1e3 for run in runs for seconds in run.images]
    peaks = [run.peak_rss for run in runs if run.peak_rss is not None]
    return {
        "images_per_second": images / median(run.seconds for run in runs),
        "p50_ms": percentile(samples, 50),
        "p90_ms": percentile(samples, 90),
        "samples": len(samples),
        "peak_rss_mb": max(peaks) / 1e6 if peaks else None,
    }


def _shareable(options: BenchOptions, images: int) -> dict[str, Any]:
    """Options without the folders above: results are meant to be passed on."""
    values = asdict(options)
    names = {key: value.name for key, value in values.items() if isinstance(value, Path)}
    return {**values, **names, "pictures_timed": images}


def _method(options: BenchOptions, threads: int) -> list[str]:
    return [
        "pytorch: the same weights in float32 PyTorch eager, one picture, one box and one crop at "
        "a time, masks of full size, run lengths coded pixel by pixel in Python",
        f"tk: the stages of `tk annotate`, groups of {options.batch_size} pictures",
        f"both in one process with {threads} threads, by turns (A B A B), {options.repeats} "
        f"passes each after a warm-up on the first {options.batch_size} pictures; medians over "
        "passes, no sample left out",
        f"included: reading and decoding files (tk reads up to {DECODERS} at once, pytorch one), "
        "all stages, writing predictions.json with masks; not included: loading models, drawing",
        "`encode` is run lengths, JSON and writing; the pixel loop of the reference alone would "
        "flatter tk, so the total is given without it too",
        "a picture of tk counts its equal share of its group's time: p50 and p90 of tk are of "
        "groups; efficiency is time inside engines / wall time of tk",
        "peak memory is above the level at the start of a pass; models of both sides are loaded",
    ]
