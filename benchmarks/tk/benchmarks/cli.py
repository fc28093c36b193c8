"""`tk bench`: measurements side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tk.cli import group

bench = group("Latency, accuracy and equality, side by side.")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")]


@bench.command()
def annotator(
    out: Out,
    images: Annotated[Path, typer.Option(help="Folder of real photos, or one photo.")],
    bundles: Annotated[
        Path, typer.Option(help="Folder with the bundles detector/, segmenter/ and embedder/.")
    ],
    gallery: Annotated[Path, typer.Option(help="Gallery, as for `tk annotate`.")],
    source: Annotated[
        Path,
        typer.Option(help="Folder with the runs, or models, the bundles were made from."),
    ],
    truth: Annotated[
        Path | None, typer.Option(help="COCO annotations of the photos: score tk against them.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="predictions.json to score with --truth [what the benchmark finds]."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many photos, 0: all.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each chain, by turns.")] = 3,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of both sides, 0 for all cores.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that share a batch in tk.")] = 4,
    prompt: Annotated[
        str | None, typer.Option(help="For a text detector, as for `tk annotate`.")
    ] = None,
    fixed_boxes: Annotated[
        int,
        typer.Option(
            min=0,
            help="So many boxes instead of what the detector found (it runs all the same): for "
            "random weights. 0: what it finds.",
        ),
    ] = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time `tk annotate` stage by stage against two PyTorch chains with the same weights.

    sequential: one box, one crop at a time, as scripts do it; batched: all boxes and crops of a
    photo at once. All find the same objects, or the exit code is 1. Writes OUT/results.json (raw
    samples), results.md, results.csv and stages.png. PyTorch must be installed.

    Example: tk bench annotator bench --images scenes/test/images --bundles demo/bundles
    --gallery demo/gallery --source demo/runs --truth scenes/test/annotations.json
    """
    _need("torch", "torchvision", "timm", "matplotlib")
    from tk.benchmarks.annotator import BenchOptions, bench_annotator
    from tk.runtime.heads.text_detector import TextOptions

    options = BenchOptions(
        images,
        bundles,
        gallery,
        source,
        truth,
        predictions,
        limit,
        repeats,
        threads,
        batch_size,
        TextOptions(prompt),
        fixed_boxes,
    )
    results = bench_annotator(out, options, overwrite=overwrite)
    _show(results, out, as_json)


@bench.command()
def chain(
    out: Out,
    work: Annotated[
        Path, typer.Option(help="Folder for scenes, models and bundles; used again. [3 GB]")
    ],
    images: Annotated[int, typer.Option(min=1, help="Generated scenes to time.")] = 8,
    image_size: Annotated[int, typer.Option(min=256, help="Their longer side, px.")] = 1600,
    boxes: Annotated[int, typer.Option(min=1, help="Boxes per scene, on all sides.")] = 11,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each chain, by turns.")] = 3,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of all sides, 0 for all cores.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that share a batch in tk.")] = 4,
    small: Annotated[bool, typer.Option("--small", help="Models of a few MB instead.")] = False,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time GroundingDINO-T, SAM-2.1-tiny and DINOv3 ViT-S in their real sizes, random weights.

    Speed and memory do not depend on the weights, so nothing is fetched. Makes scenes, models,
    bundles (proved against PyTorch) and a gallery in WORK, then does what `tk bench annotator`
    does, with the same boxes in every scene.

    Example: tk bench chain OUT --work WORK --images 8
    """
    _need("torch", "torchvision", "timm", "transformers", "matplotlib")
    from tk.benchmarks.chain import bench_chain

    results = bench_chain(
        out,
        work,
        images=images,
        image_size=image_size,
        boxes=boxes,
        repeats=repeats,
        threads=threads,
        batch_size=batch_size,
        small=small,
        overwrite=overwrite,
    )
    _show(results, out, as_json)


@bench.command()
def train(
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option(metavar="ROOT", help="Crops: ROOT/<class>/cropped/* [generated tools]."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Generated scenes, ~5 crops each.")] = 100,
    model_id: Annotated[str, typer.Option(help="timm backbone to time.")] = "vit_small_patch16_224",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its weights [random].")
    ] = None,
    img_size: Annotated[int, typer.Option(min=16, help="Side of the canvas, pixels.")] = 224,
    views: Annotated[int, typer.Option(min=1, help="Views of each crop to keep.")] = 4,
    epochs: Annotated[int, typer.Option(min=3, help="Epochs to time; the first is left out.")] = 4,
    accuracy_model: Annotated[
        str, typer.Option(help="Backbone that learns from other tools first; '': none.")
    ] = "test_resnet",
    accuracy_size: Annotated[int, typer.Option(min=16, help="Side of its canvas, pixels.")] = 96,
    accuracy_epochs: Annotated[int, typer.Option(min=1, help="Epochs of its comparison.")] = 16,
    accuracy_views: Annotated[
        list[int] | None, typer.Option(min=1, help="Views to keep in it, repeatable [1 4 8].")
    ] = None,
    warm_images: Annotated[int, typer.Option(min=1, help="Scenes from which it learns.")] = 300,
    warm_epochs: Annotated[int, typer.Option(min=1, help="How long it learns.")] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of its comparison.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2, help="Samples per step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and weights.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads, 0 for all cores.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time epochs of an embedder on a frozen backbone, with and without kept features.

    Both train with the same seed. Then a small backbone that knows tools shows what views that
    repeat cost in accuracy. Writes OUT/results.json (raw samples) and results.md.

    Example: tk bench train bench-train --images 100 --views 4
    """
    _need("torch", "torchvision", "timm", "albumentations", "sklearn")
    from tk.benchmarks.train import TrainBenchOptions, bench_train
    from tk.benchmarks.train_report import table

    options = TrainBenchOptions(
        data=data,
        images=images,
        model_id=model_id,
        weights=weights,
        img_size=img_size,
        views=views,
        epochs=epochs,
        accuracy_model=accuracy_model,
        accuracy_size=accuracy_size,
        accuracy_epochs=accuracy_epochs,
        accuracy_views=tuple(accuracy_views or TrainBenchOptions.accuracy_views),
        warm_images=warm_images,
        warm_epochs=warm_epochs,
        seeds=seeds,
        batch_size=batch_size,
        seed=seed,
        threads=threads,
        device=device,
    )
    results = bench_train(out, options, overwrite=overwrite)
    if as_json:
        _print_json(results)
    else:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json")


@bench.command()
def models(
    out: Out,
    bundle: Annotated[Path, typer.Option(help="Graphs and plans of one model, as exported.")],
    source: Annotated[
        str,
        typer.Option(help="What the bundle was exported from: times PyTorch beside it [no]."),
    ] = "",
    backbone: Annotated[
        Path | None, typer.Option(help="Backbone of a head, as for `tk export`.")
    ] = None,
    sam2_cfg: Annotated[
        str, typer.Option(help="Configuration of an original SAM-2 .pt, as for `tk export`.")
    ] = "",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N, for engines and PyTorch alike.")
    ] = "auto",
    batches: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch to time, repeatable [1 4].")
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Timed calls of each engine and batch.")] = 50,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of every engine, 0 for all cores.")
    ] = 0,
    compile_too: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With --source: torch.compile as well.")
    ] = True,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time one model on every engine of this machine, part by part, PyTorch beside them.

    All engines that passed the gate take turns with real inputs of the bundle: TensorRT, ONNX
    Runtime, OpenVINO, in every precision; with --source also PyTorch eager, compiled, and on a GPU
    with autocast. On a GPU the times of the model alone are taken by CUDA events too. Answers that
    the bundle has of PyTorch are compared once more. Writes OUT/results.json (raw samples) and
    results.md. Without --source it needs no PyTorch.

    Example: tk bench models bench-sam2 --bundle bundles/segmenter --source runs/segmenter

    Example, on a Jetson: tk bench models bench-embedder --bundle bundles/embedder
    """
    # Before PyTorch is loaded: its idle threads would spin and hold up every other engine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if source:
        _need("torch", "timm", "onnx")
    from tk.benchmarks.engines import ModelsOptions
    from tk.benchmarks.models import bench_models
    from tk.benchmarks.models_report import table

    options = ModelsOptions(
        bundle=bundle,
        source=source,
        backbone=backbone,
        sam2_cfg=sam2_cfg,
        device=device,
        batches=tuple(batches or ModelsOptions.batches),
        repeats=repeats,
        threads=threads,
        compile=compile_too,
    )
    results = bench_models(out, options, overwrite=overwrite)
    if as_json:
        _print_json(results)
    else:
        print("\n".join(table(results)))
        for text in results["left_out"]:
            print(f"left out: {text}")
        print(f"results: {out}/results.md, results.json")


@bench.command()
def int8(
    out: Out,
    bundle: Annotated[
        Path, typer.Option(help="Embedder, as `tk export --precision fp32,int8` writes it.")
    ],
    gallery: Annotated[
        Path, typer.Option(metavar="ROOT", help="Crops to search: ROOT/<class>/cropped/*.")
    ],
    queries: Annotated[
        Path, typer.Option(metavar="ROOT", help="Crops to look for, of the same classes.")
    ],
    batches: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch to time, repeatable [1 8].")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each pair and batch.")] = 30,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of every engine, 0 for all cores.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Crops of each folder, 0: all.")] = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time and score an embedder in every precision, on every back end that passed its gate.

    All pairs take turns, in wall and CPU time; then each says the class of every query by its
    nearest crop. Writes OUT/results.json (raw samples) and results.md. Needs no PyTorch.

    Example: tk bench int8 bench-int8 --bundle bundles/embedder --gallery train --queries test
    """
    from tk.benchmarks.int8 import Int8Options, bench_int8
    from tk.benchmarks.int8_report import table

    options = Int8Options(
        bundle=bundle,
        gallery=gallery,
        queries=queries,
        batches=tuple(batches or Int8Options.batches),
        repeats=repeats,
        threads=threads,
        limit=limit,
    )
    results = bench_int8(out, options, overwrite=overwrite)
    if as_json:
        _print_json(results)
    else:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json")


@bench.command()
def crops(
    out: Out,
    images: Annotated[
        Path | None, typer.Option(help="Folder of JPEG photos [generated scenes].")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many pictures.")] = 24,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Longer side of generated scenes, px, repeatable [256 500]."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=5, help="Passes of each side, by turns.")] = 9,
    local_crops: Annotated[int, typer.Option(min=0, help="Crops of 96 px beside 2 of 224.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes and crops.")] = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time the multi-crop of `tk train ssl` beside lightly's DINOTransform, on one thread.

    Same crops, ranges and probabilities; JPEG decoding is stated by itself. Writes
    OUT/results.json (raw samples) and results.md. lightly must be installed.

    Example: tk bench crops bench-crops --limit 24
    """
    _need("torch", "torchvision", "albumentations")
    from tk.benchmarks.crops import CropsBenchOptions, bench_crops
    from tk.benchmarks.crops_report import table

    sizes = tuple(size or CropsBenchOptions.sizes)
    options = CropsBenchOptions(images, limit, sizes, repeats, local_crops, seed)
    results = bench_crops(out, options, overwrite=overwrite)
    if as_json:
        _print_json(results)
    else:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json")


@bench.command()
def ssl(
    out: Out,
    work: Annotated[
        Path, typer.Option(help="Folder for the digits and the runs; finished runs are kept.")
    ],
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT=SEEDS", help="Repeatable [dino=3 ibot=1 none=1]."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=4, help="Passes over the 1437 pictures.")] = 120,
    only: Annotated[
        str, typer.Option(metavar="VARIANT-SEED", help="Train this run alone, write no results.")
    ] = "",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a run.")] = 1,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Pre-train on handwritten digits, beside raw pixels, an untrained network and failures.

    \b
    Variants: dino, ibot, sinkhorn; none (no centering: must collapse); norm-none, eps, statistics,
    init (the small preset without one of its parts, a quarter of the epochs).
    Example: tk bench ssl OUT --work WORK --run dino=3 --run none=1
    """
    _need("torch", "torchvision", "timm", "albumentations", "sklearn", "matplotlib")
    from tk.benchmarks.ssl import SslBenchOptions, bench_ssl, parse_runs
    from tk.benchmarks.ssl_report import table

    runs = parse_runs(run or ["dino=3", "ibot=1", "none=1"])
    options = SslBenchOptions(work, runs, epochs, threads=threads)
    results = bench_ssl(out, options, only=only, overwrite=overwrite)
    if as_json:
        _print_json(results)
    elif results:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json")


@bench.command()
def table(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished `tk train distill`.")
    ],
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of the engine, 0 for all cores.")
    ] = 1,
    samples: Annotated[int, typer.Option(min=1, help="Timed calls of each model and batch.")] = 300,
    seconds: Annotated[
        float,
        typer.Option(min=0.0, help="A measurement ends after so many, with 10 calls at least."),
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Print the table of a distillation run with measured latencies: heads alone, and from pixels.

    Exports heads and chains (backbone and head in one graph, students) into RUN/bundles, those that
    changed, and times them with ONNX Runtime on the CPU at batch 1 and 32: warm, by turns, p50 and
    p99. Writes RUN/latency.json (raw samples), table_heads and table_pixels as .md, .csv, .png.

    Example: tk bench table runs/steel
    """
    _need("torch", "timm", "onnx", "matplotlib")
    from tk.benchmarks.table import TableOptions, bench_table
    from tk.benchmarks.table_report import said

    options = TableOptions(threads=threads, samples=samples, seconds=seconds)
    results = bench_table(run, options)
    if as_json:
        _print_json(results)
    else:
        print(said(run))


def _print_json(results: dict[str, Any]) -> None:
    """Print everything but the raw samples."""
    import orjson

    shown = {key: value for key, value in results.items() if key != "runs"}
    print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())


def _show(results: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print the results of chains; chains that find different things are a failed check."""
    from tk.benchmarks.report import table
    from tk.runtime.errors import CheckFailed

    if as_json:
        _print_json(results)
    else:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json, results.csv, stages.png")
    if results["problems"]:
        raise CheckFailed("the chains do not find the same", found="; ".join(results["problems"]))


def _need(*modules: str) -> None:
    from importlib import util

    from tk.runtime.errors import EnvironmentLacks

    if missing := [name for name in modules if util.find_spec(name) is None]:
        raise EnvironmentLacks(
            "tk bench runs PyTorch, which is not installed whole",
            found=f"no {', '.join(missing)}",
            fix="pip install 'tk-vision[cpu,train]'",
        )


COMMANDS: dict[str, typer.Typer] = {"bench": bench}
