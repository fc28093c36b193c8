"""`tk bench`: measurements side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
        import orjson

        shown = {key: value for key, value in results.items() if key != "runs"}
        print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(table(results)))
        print(f"results: {out}/results.md, results.json, results.csv, stages.png")
    if results["problems"]:
        raise CheckFailed(
            "the two chains do not find the same", found="; ".join(results["problems"])
        )


def _need(*modules: str) -> None:
    from importlib import util

    from tk.runtime.errors import EnvironmentLacks

    if missing := [name for name in modules if util.find_spec(name) is None]:
        raise EnvironmentLacks(
            "tk bench compares with PyTorch, which is not installed whole",
            found=f"no {', '.join(missing)}",
            fix="pip install 'tk-vision[cpu,train]'",
        )


COMMANDS: dict[str, typer.Typer] = {"bench": bench}
