"""`tk bench annotator`: the annotator against PyTorch chains with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tk.benchmarks.environment import available_cores, environment
from tk.benchmarks.equality import Equality, compare_records
from tk.benchmarks.fixed_boxes import FixedBoxes
from tk.benchmarks.quality import Quality, judge
from tk.benchmarks.reference_chain import ReferenceChain
from tk.benchmarks.report import MARKDOWN, write_results
from tk.benchmarks.sources import open_models
from tk.benchmarks.summary import REFERENCES, SIDES, summarise
from tk.benchmarks.timing import Run
from tk.benchmarks.tk_chain import DECODERS, run_tk
from tk.benchmarks.torch_models import TorchModels
from tk.runtime.annotate.annotator import AnnotateOptions, Chain, Models
from tk.runtime.annotate.output import PREDICTIONS
from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing, refuse_inputs
from tk.runtime.heads.text_detector import TextOptions
from tk.runtime.images import find_images
from tk.runtime.progress import progress
from tk.runtime.records import load_predictions


@dataclass(frozen=True)
class BenchOptions:
    """What is compared, and how often.

    Attributes:
        images: a folder of pictures, or one.
        bundles: folder with the bundles detector, segmenter and embedder.
        gallery: as for `tk annotate`.
        source: folder with the training runs, or model folders, of the same names.
        truth: COCO annotations of the pictures, or None.
        predictions: records of `tk annotate` to score against `truth`, all of them; None scores
            what the benchmark itself found.
        limit: only the first so many pictures, 0 for all.
        repeats: passes of each chain, by turns.
        threads: of both sides; 0 takes the cores that this process may use.
        batch_size: pictures that share a batch in tk; the references take one after the other.
        text: prompt and threshold of a text detector.
        fixed_boxes: the detector runs, and then so many boxes, the same on all sides, take the
            place of what it found: for random weights, which find nothing; 0: not.
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
    text: TextOptions = field(default_factory=TextOptions)
    fixed_boxes: int = 0


def bench_annotator(out: Path, options: BenchOptions, *, overwrite: bool = False) -> dict[str, Any]:
    """Time the chains, compare what they find, and write the results.

    Args:
        out: gets results.json, results.md, results.csv and stages.png.
        options: see `BenchOptions`.
        overwrite: replace what is in `out`.

    Returns:
        What is in `results.json`; `problems` is empty when the chains find the same.

    Raises:
        TkError: bad input, or a bundle that was not made from the checkpoint given.
    """
    refuse_inputs(
        out,
        {
            "--images": options.images,
            "--bundles": options.bundles,
            "--gallery": options.gallery,
            "--source": options.source,
            "--truth": options.truth,
            "--predictions": options.predictions,
        },
    )
    refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    if options.repeats < 1:
        raise TkError("a benchmark needs at least one repeat", found=str(options.repeats))
    files = find_images(options.images)[: options.limit or None]
    threads = options.threads or available_cores()
    facts = environment(threads)
    models = open_models(options.source, options.bundles, options.text)
    settings = AnnotateOptions(
        text=options.text,
        threads=threads,
        batch_size=options.batch_size,
        pictures=False,
        masks=True,
    )
    folders = Models(*(options.bundles / task for task in ("detector", "segmenter", "embedder")))
    with closing(Chain(folders, options.gallery, settings)) as chain, _TorchThreads(threads):
        if options.fixed_boxes:
            chain.detector = FixedBoxes(chain.detector, options.fixed_boxes)
        passes = _passes(models, chain, settings, options)
        with tempfile.TemporaryDirectory(prefix="tk-bench-") as temporary:
            runs = _take_turns(passes, files, options, Path(temporary))
            equality, quality = _judge(Path(temporary), options)
        sessions = [
            {"name": s.name, "backend": s.backend, "precision": s.precision} for s in chain.sessions
        ]
    results = {
        "benchmark": "annotator",
        "problems": [f"{side}: {text}" for side, own in equality.items() for text in own.problems],
        "environment": facts,
        "options": _shareable(options, len(files)),
        "method": _method(options, threads),
        "sessions": sessions,
        "summary": summarise(runs, len(files)),
        "equality": {side: asdict(own) for side, own in equality.items()},
        "quality": quality.to_json() if quality else None,
        "quality_lines": quality.lines() if quality else [],
        "runs": {side: [asdict(run) for run in own] for side, own in runs.items()},
    }
    write_results(out, results, overwrite=overwrite)
    return results


def _passes(
    models: TorchModels, chain: Chain, settings: AnnotateOptions, options: BenchOptions
) -> dict[str, Callable[[Sequence[Path], Path], Run]]:
    """Side -> what runs it over files and leaves its records in a folder."""

    def reference(batched: bool) -> Callable[[Sequence[Path], Path], Run]:
        own = ReferenceChain(
            *(models, chain.gallery, chain.threshold, settings),
            batched=batched,
            boxes=options.fixed_boxes,
        )
        return lambda some, to: own.run(some, options.images, to)

    def tk(some: Sequence[Path], to: Path) -> Run:
        return run_tk(chain, settings, some, options.images, to)

    return dict(zip(SIDES, (reference(False), reference(True), tk), strict=True))


def _take_turns(
    passes: dict[str, Callable[[Sequence[Path], Path], Run]],
    files: Sequence[Path],
    options: BenchOptions,
    temporary: Path,
) -> dict[str, list[Run]]:
    """Warm all sides up, then A B C A B C; records of the last pass stay in `temporary/SIDE`."""
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


def _judge(folder: Path, options: BenchOptions) -> tuple[dict[str, Equality], Quality | None]:
    """How equal each reference and tk are, and how good tk is."""
    found = load_predictions(folder / "tk" / PREDICTIONS)
    equality = {
        side: compare_records(load_predictions(folder / side / PREDICTIONS), found)
        for side in REFERENCES
    }
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


def _shareable(options: BenchOptions, images: int) -> dict[str, Any]:
    """Options without the folders above: results are meant to be passed on."""
    values = asdict(options)
    names = {key: value.name for key, value in values.items() if isinstance(value, Path)}
    return {**values, **names, "pictures_timed": images}


def _method(options: BenchOptions, threads: int) -> list[str]:
    boxes = (
        f"every detector runs; then {options.fixed_boxes} boxes, the same on all sides, take the "
        "place of what it found (random weights find nothing)"
    )
    return [
        "sequential: the same weights in float32 PyTorch eager, one picture, one box and one crop "
        "at a time, masks of full size, run lengths coded pixel by pixel in Python",
        "batched: the same, all boxes and all crops of a picture in one call, run lengths by numpy",
        f"tk: the stages of `tk annotate`, groups of {options.batch_size} pictures",
        *([boxes] if options.fixed_boxes else []),
        f"all in one process with {threads} threads, by turns (A B C A B C), {options.repeats} "
        f"passes each after a warm-up on the first {options.batch_size} pictures; medians over "
        "passes, no sample left out",
        f"included: reading and decoding files (tk reads up to {DECODERS} at once, PyTorch one), "
        "all stages, writing predictions.json with masks; not included: loading models, drawing",
        "`encode` is run lengths, JSON and writing; the pixel loop of the sequential chain alone "
        "would flatter tk, so the total is given without it too",
        "a picture of tk counts its equal share of its group's time: p50 and p90 of tk are of "
        "groups; efficiency is time inside engines / wall time of tk, overhead is CPU time of tk "
        "outside engines / all of its CPU time",
        "peak memory is above the level at the start of a pass; models of all sides are loaded",
    ]
