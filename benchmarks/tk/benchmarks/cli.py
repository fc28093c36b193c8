"""`tk bench`: measurements side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tk.cli import group

bench = group("Latency, accuracy and equality, side by side.")


@bench.command()
def annotator(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    images: Annotated[Path, typer.Option(help="Folder of real photos, or one photo.")],
    bundles: Annotated[
        Path, typer.Option(help="Folder with the bundles detector/, segmenter/ and embedder/.")
    ],
    gallery: Annotated[Path, typer.Option(help="Gallery, as for `tk annotate`.")],
    source: Annotated[
        Path, typer.Option(help="Folder with the training runs the bundles were made from.")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """Time `tk annotate` stage by stage against plain PyTorch with the same weights.

    Both find the same objects, or the exit code is 1. Writes OUT/results.json (raw samples),
    results.md, results.csv and stages.png. PyTorch must be installed.

    Example: tk bench annotator bench --images scenes/test/images --bundles demo/bundles
    --gallery demo/gallery --source demo/runs --truth scenes/test/annotations.json
    """
    _need("torch", "torchvision", "timm", "matplotlib")
    from tk.benchmarks.annotator import BenchOptions, bench_annotator
    from tk.benchmarks.report import table
    from tk.runtime.errors import CheckFailed

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
    )
    results = bench_annotator(out, options, overwrite=overwrite)
    if as_json:
        _print_json(results)
    else:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json, results.csv, stages.png")
    if results["problems"]:
        raise CheckFailed(
            "the two chains do not find the same", found="; ".join(results["problems"])
        )


@bench.command()
def train(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
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


def _print_json(results: dict[str, Any]) -> None:
    """Print everything but the raw samples."""
    import orjson

    shown = {key: value for key, value in results.items() if key != "runs"}
    print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())


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
