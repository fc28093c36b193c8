"""`tk plan`: TensorRT plans of a bundle's graphs, on the machine that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tk.cli import single


def plan(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle that `tk export` wrote, here or elsewhere.")
    ],
    precision: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="fp32,fp16,bf16,int8 [all that the bundle has graphs of]."
        ),
    ] = "",
    level: Annotated[
        int, typer.Option(min=0, max=5, help="0 builds quickly, 5 tries every kernel.")
    ] = 3,
    workspace: Annotated[
        int, typer.Option(min=0, help="GPU memory of one layer, MiB; 0 leaves it to TensorRT.")
    ] = 0,
    opt_batch: Annotated[
        int, typer.Option(min=0, help="Rows that kernels are chosen for; 0: the largest batch.")
    ] = 0,
    hardware: Annotated[
        str,
        typer.Option(
            help="A plan for `none` but this GPU, the `same` compute capability, or `ampere` and "
            "newer."
        ),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="For the tensorrt_lean of this version, beside a newer one.",
        ),
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="float32 layers may multiply in TF32; then it is proved.")
    ] = False,
    own_tactics: Annotated[
        bool, typer.Option("--own-tactics", help="8.6: do without cuDNN and cuBLAS.")
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache",
            "--cache",
            metavar="DIR",
            help="Folder that keeps timings of kernels between builds: they get shorter.",
        ),
    ] = None,
) -> None:
    """Build TensorRT plans from the graphs of a bundle, and prove them. No PyTorch needed.

    A plan is native code for one TensorRT and one kind of GPU, so it is built where it runs. Its
    answers are compared with those of PyTorch that lie in the bundle, up to the largest batch; a
    plan that fails is not kept, and the exit code is 1. Of several GPUs the first is taken;
    CUDA_VISIBLE_DEVICES chooses another.

    Example: tk plan bundles/detector --precision fp16
    """
    from tk.export.tensorrt.add import add_plans
    from tk.export.tensorrt.options import BuildOptions
    from tk.runtime.backends.registry import check_names

    names = [name.strip() for name in precision.split(",") if name.strip()]
    for name in names:
        check_names("auto", name)
    options = BuildOptions(
        level=level,
        workspace=workspace << 20,
        opt_batch=opt_batch,
        max_batch=max(1, opt_batch),  # each part has its own
        hardware=hardware,
        version_compatible=version_compatible,
        tf32=tf32,
        own_tactics=own_tactics,
        cache=timing_cache,
    )
    added = add_plans(bundle, names, options)
    for file in added.files:
        print(f"{bundle}/{file}: {(bundle / file).stat().st_size / 1e6:.1f} MB")
    for row in added.rows:
        for part, measures in row.measures.items():
            for measure in measures:
                print(f"  ok   {row.precision}: {part}/{measure.output} {measure}")


COMMANDS: dict[str, typer.Typer] = {"plan": single(plan)}
