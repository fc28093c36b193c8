"""`tk plan`: TensorRT plans of a bundle's graphs, on the machine that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tk.cli import single

if TYPE_CHECKING:
    from tk.export.tensorrt.options import BuildOptions

SHOWN = 5
"""Complaints about one graph that are listed."""


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
    check: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="Build nothing: say what TensorRT of this version (8.6, 10.3, …) would not read, "
            "by its documentation. Works anywhere, without a GPU.",
        ),
    ] = "",
) -> None:
    """Build TensorRT plans from the graphs of a bundle, and prove them. No PyTorch needed.

    A plan is native code for one TensorRT and one kind of GPU, so it is built where it runs. Its
    answers are compared with those of PyTorch that lie in the bundle, up to the largest batch; a
    plan that fails is not kept, and the exit code is 1. Of several GPUs the first is taken;
    CUDA_VISIBLE_DEVICES chooses another.

    Example: tk plan bundles/detector --precision fp16

    Example, on the computer where the bundle was made, before it goes to a Jetson of JetPack 6.0:
    tk plan bundles/detector --check 8.6
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
    if check:
        _look_ahead(bundle, names, check, options)
        return
    added = add_plans(bundle, names, options)
    for file in added.files:
        print(f"{bundle}/{file}: {(bundle / file).stat().st_size / 1e6:.1f} MB")
    for row in added.rows:
        for part, measures in row.measures.items():
            for measure in measures:
                print(f"  ok   {row.precision}: {part}/{measure.output} {measure}")


def _look_ahead(bundle: Path, names: list[str], version: str, options: BuildOptions) -> None:
    from tk.export.tensorrt.check import check_bundle
    from tk.runtime.errors import CheckFailed

    outlooks = check_bundle(bundle, names, version, options)
    print(f"TensorRT {version}, by its documentation; nothing was built")
    for one in outlooks:
        kept = f", {one.kept} of them bound to float32" if one.kept else ""
        print(
            f"{'FAIL' if one.refused else 'ok  '} {one.part} {one.precision}: from {one.graph}"
            + (f", {one.nodes} nodes{kept}" if one.nodes else "")
        )
        for text in one.refused[:SHOWN]:
            print(f"     refused: {text}")
        if len(one.refused) > SHOWN:
            print(f"     … and {len(one.refused) - SHOWN} more")
        for text in one.warnings:
            print(f"     known:   {text}")
    if bad := [f"{one.part} in {one.precision}" for one in outlooks if one.refused]:
        raise CheckFailed(
            f"TensorRT {version} would build no plan of {', '.join(bad)}",
            fix="what stands above; for opset 17: tk export SOURCE OUT --opset 17; or leave this "
            "--precision out",
        )


COMMANDS: dict[str, typer.Typer] = {"plan": single(plan)}
