"""`tk export`: checkpoint in, proved bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tk.cli import single


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoint or run folder of `tk train`, a head of `tk train distill`; Hugging "
            "Face folder, .safetensors file or hub id of GroundingDINO or SAM-2; SAM-2 .pt file.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Bundle folder to make.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of real images: the gate compares answers on them. A head alone takes "
            "none, but features: a .npy file of them, or those of the run it lies in."
        ),
    ] = None,
    max_batch: Annotated[
        int,
        typer.Option(
            min=0,
            max=256,
            help="Largest batch of pictures to prove and allow; 0: 16, and 4 for GroundingDINO "
            "and SAM-2, which need 1 to 2 GB per picture.",
        ),
    ] = 0,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Canvas of the graph in pixels, e.g. 800x1216.")
    ] = "",
    bake: Annotated[
        str,
        typer.Option(metavar="PROMPT", help="Fold this prompt into the graph (text detectors)."),
    ] = "",
    sam2_cfg: Annotated[
        str,
        typer.Option(
            "--sam2-cfg",
            metavar="NAME",
            help="Configuration of an original SAM-2 .pt, e.g. configs/sam2.1/sam2.1_hiera_t.yaml.",
        ),
    ] = "",
    backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of a head: the backbone whose features it was trained on. One graph sees images "
            "and gives probabilities; another backbone is refused.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="fp32,fp16,bf16,int8: graphs to make. fp32 is always made; bf16 and fp16 are for "
            "GPUs (and OpenVINO), int8 is fastest on x86 CPUs; see docs/precision.md.",
        ),
    ] = "fp32",
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="LIST",
            help="onnx,tensorrt. tensorrt builds a plan of every graph for the GPU of this "
            "machine; the graphs stay, plans are built again from them.",
        ),
    ] = "onnx",
    no_fallback: Annotated[
        bool,
        typer.Option(
            "--no-fallback",
            help="A precision that fails the gate is an error. Without it tk looks for the least "
            "that must stay in float32, and says which blocks and why.",
        ),
    ] = False,
    calibration: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="Ranges of int8: percentile (99.999 % of values), max, entropy or mse.",
        ),
    ] = "percentile",
    calibration_images: Annotated[
        int,
        typer.Option(min=32, help="Images of --images that ranges of int8 are measured on."),
    ] = 64,
    level: Annotated[
        int,
        typer.Option(min=0, max=5, help="TensorRT: 0 builds quickly, 5 tries every kernel."),
    ] = 3,
    workspace: Annotated[
        int,
        typer.Option(min=0, metavar="MIB", help="TensorRT: most memory of one layer. 0: free."),
    ] = 0,
    hardware: Annotated[
        str,
        typer.Option(
            help="TensorRT: a plan for `none` but this GPU, the `same` compute capability, or "
            "`ampere` and newer."
        ),
    ] = "none",
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="TensorRT: folder of timing caches; builds get shorter."),
    ] = None,
    opset: Annotated[
        int, typer.Option(min=17, max=18, help="Of the ONNX files; 17 is for TensorRT 8.6.")
    ] = 18,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the bundle that is in OUT.")
    ] = False,
) -> None:
    """Turn a checkpoint into a bundle that runs without PyTorch, and prove that it is equal.

    Writes ONNX graphs (uint8 NHWC in, normalisation inside, free batch), checks and lints them,
    then compares the very bytes that ship with the float32 PyTorch model on real images at batch
    1, 2 and the largest, and each picture alone with itself in a batch, on every back end of this
    machine. A back end that fails is never chosen for that file; a file that fails everywhere is
    mixed with float32 until it passes, or nothing is kept and the exit code is 1.

    OUT may be a bundle of the same checkpoint: precisions that it lacks are added; `tk plan OUT`
    adds TensorRT plans. int8 needs 32 readable images or more in --images, best 100 that look like
    those to come.

    Example: tk export runs/detector bundles/detector --images scenes/test/images

    Example: tk export runs/embedder bundles/embedder --images photos --precision fp32,int8

    Example, on the machine with the GPU: tk export runs/embedder bundles/embedder --images photos
    --to onnx,tensorrt --precision fp16

    Example, a head and its backbone in one graph: tk export run/models/student/seed0.pth
    bundles/student --backbone run/backbone.pth --images patches

    Example: tk export IDEA-Research/grounding-dino-tiny bundles/detector --images photos
    """
    import time

    from tk.export.existing import open_existing
    from tk.export.request import PRECISIONS, TARGETS, Request, method_of, words
    from tk.export.sources.registry import open_source
    from tk.export.write import write_bundle
    from tk.runtime.files import refuse_inputs

    request = Request(
        precisions=words("--precision", precision, PRECISIONS),
        targets=words("--to", to, TARGETS),
        fallback=not no_fallback,
        method=method_of(calibration),
        calibration=calibration_images,
        level=level,
        workspace=workspace << 20,
        hardware=hardware,
        cache=timing_cache,
    )
    given = Path(source) if Path(source).exists() else None  # else a name, or on the hub
    inputs = {"SOURCE": given, "--images": images, "--backbone": backbone}
    refuse_inputs(out, inputs)
    open_existing(out, request, overwrite=overwrite)
    request.check_machine()
    started = time.monotonic()
    canvas = parse_size(size)
    model = open_source(
        source, max_batch, size=canvas, prompt=bake, sam2_cfg=sam2_cfg, backbone=backbone
    )
    lines = write_bundle(model, out, images, overwrite=overwrite, opset=opset, request=request)
    megabytes = sum(file.stat().st_size for file in out.glob("*.onnx*")) / 1e6
    print(
        f"{out}: {model.task}, {model.parameters / 1e6:.2f} M parameters, "
        f"{megabytes:.1f} MB of ONNX, {time.monotonic() - started:.0f} s"
    )
    proved = (f"{name} {part.spec.max_batch}" for name, part in model.parts.items())
    print(f"  largest batch proved: {', '.join(proved)} (--max-batch sets that of pictures)")
    for line in lines:
        print(f"  {line}")


def parse_size(text: str) -> tuple[int, int] | None:
    """Read `HxW`, or `S` for a square; None for "".

    Raises:
        TkError: not one or two whole numbers above 0.
    """
    from tk.runtime.errors import TkError

    if not text:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise TkError(f"--size {text!r} is not a size", expected="HxW in pixels, e.g. 800x1216")
    return int(sides[0]), int(sides[-1])


COMMANDS: dict[str, typer.Typer] = {"export": single(export)}
