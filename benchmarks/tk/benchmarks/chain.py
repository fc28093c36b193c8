"""`tk bench chain`: the published sizes end to end, without the published weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tk.benchmarks.annotator import BenchOptions, bench_annotator
from tk.benchmarks.random_models import SMALL_CANVAS, write_models
from tk.benchmarks.report import MARKDOWN
from tk.runtime.bundle import Bundle
from tk.runtime.files import atomic_folder, refuse_existing, refuse_inputs
from tk.runtime.gallery.build import build_gallery
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.text_detector import TextOptions

PROMPT = "tool."
REFERENCES = 12
"""Scenes whose crops become the gallery."""


def bench_chain(
    out: Path,
    work: Path,
    *,
    images: int = 8,
    image_size: int = 1600,
    boxes: int = 11,
    repeats: int = 3,
    threads: int = 0,
    batch_size: int = 4,
    small: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make what is missing in `work`, then time the chains; see `bench_annotator`.

    Args:
        out: gets the results.
        work: scenes, models, bundles and gallery, 3 GB; used again by the next call.
        images: generated scenes to time.
        image_size: their longer side, pixels.
        boxes: per picture.
        repeats, threads, batch_size: see `BenchOptions`.
        small: models of a few MB instead, to try the mechanics.
        overwrite: replace what is in `out`.
    """
    refuse_inputs(out, {"--work": work})
    refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    kind = "small" if small else "full"
    source, bundles, gallery = (
        work / f"{name}-{kind}" for name in ("source", "bundles", "gallery")
    )
    scenes, references = work / f"scenes-{image_size}-{images}", work / "references"
    _scenes(scenes, images, image_size)
    _scenes(references, REFERENCES, 640)
    if not source.exists():
        write_models(source, small=small)
    for task in ("detector", "segmenter", "embedder"):
        _bundle(task, source / task, bundles / task, scenes / "images", small)
    if not gallery.exists():
        embedder = Embedder(Bundle.open(bundles / "embedder"), threads=threads)
        with atomic_folder(gallery) as made:
            build_gallery(references / "crops", embedder)[0].write(made)
    options = BenchOptions(
        images=scenes / "images",
        bundles=bundles,
        gallery=gallery,
        source=source,
        repeats=repeats,
        threads=threads,
        batch_size=batch_size,
        text=TextOptions(PROMPT),
        fixed_boxes=boxes,
    )
    return bench_annotator(out, options, overwrite=overwrite)


def _scenes(folder: Path, images: int, size: int) -> None:
    from tk.train.data.synth.dataset import write_tools_dataset

    if not folder.exists():
        write_tools_dataset(folder, images=images, size=size, seed=0, workers=1)


def _bundle(task: str, source: Path, bundle: Path, images: Path, small: bool) -> None:
    from tk.export.sources.registry import open_source
    from tk.export.write import write_bundle

    if bundle.exists():
        return
    print(f"exporting {task}", file=sys.stderr, flush=True)
    canvas = (SMALL_CANVAS, SMALL_CANVAS) if small and task == "detector" else None
    write_bundle(open_source(source, 0, size=canvas), bundle, images)
