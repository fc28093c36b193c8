"""`tk export`: checkpoint in, proved bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tk.cli import single


def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Checkpoint, or the run folder of `tk train`.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Bundle folder to make.")],
    images: Annotated[
        Path, typer.Option(help="Folder of real images: the gate compares answers on them.")
    ],
    max_batch: Annotated[
        int, typer.Option(min=1, max=256, help="Largest batch of pictures to prove and allow.")
    ] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """Turn a checkpoint into a bundle that runs without PyTorch, and prove that it is equal.

    Writes float32 ONNX graphs (opset 18, uint8 NHWC in, normalisation inside, free batch), checks
    and lints them, then compares the very bytes that ship with the PyTorch model on real images at
    batch 1, 2 and the largest, and each picture alone with itself in a batch. A figure that fails
    keeps nothing and exits with 1.

    Example: tk export runs/detector bundles/detector --images scenes/test/images
    """
    import time

    from tk.export.sources.registry import open_source
    from tk.export.write import write_bundle
    from tk.runtime.files import refuse_existing

    refuse_existing(out, overwrite=overwrite)
    started = time.monotonic()
    model = open_source(source, max_batch)
    lines = write_bundle(model, out, images, overwrite=overwrite)
    size = sum(file.stat().st_size for file in out.glob("*.onnx")) / 1e6
    print(
        f"{out}: {model.task}, {model.parameters / 1e6:.2f} M parameters, "
        f"{size:.1f} MB of ONNX, {time.monotonic() - started:.0f} s"
    )
    for line in lines:
        print(f"  {line}")


COMMANDS: dict[str, typer.Typer] = {"export": single(export)}
