"""`tk classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tk.runtime.options import (
    AsJson,
    BackendOption,
    DeviceOption,
    Overwrite,
    PrecisionOption,
    Threads,
    print_json,
)


def classify(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Folder of pictures (with sub-folders), or one."),
    ],
    bundle: Annotated[
        Path, typer.Option(help="Classifier that sees pictures: a student, or a chain.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="Folder for the results [NAME-classes, here]."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Pictures on the contact sheet of a class, 0: no sheets.")
    ] = 40,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Larger pictures become rows with an error.")
    ] = 500_000_000,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Say what each picture in a folder shows.

    Writes OUT/predictions.csv (image, class, probability, second class), predictions.json,
    summary.json and pictures/: a contact sheet per class, most doubtful first. Pictures in folders
    named like classes (CLASS/a.png, CLASS/cropped/a.png, test/CLASS/a.png) are scored: accuracy,
    macro-F1, confusion.csv. A picture that cannot be read becomes a row with `error`. After an
    interruption the same command goes on.

    Example: tk classify patches out --bundle bundles/student
    """
    from tk.runtime.classify.classify import ClassifyOptions
    from tk.runtime.classify.classify import classify as run
    from tk.runtime.classify.said import summary_lines

    options = ClassifyOptions(
        device=device,
        precision=precision,
        backend=backend,
        threads=threads,
        samples=samples,
        max_pixels=max_pixels,
    )
    folder = out or Path(f"{images.resolve().stem}-classes")
    summary = run(images, folder, bundle, options, overwrite=overwrite)
    if as_json:
        print_json(summary)
        return
    print("\n".join(summary_lines(summary, folder)))
