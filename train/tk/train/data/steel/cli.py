"""`tk data download|severstal|patches`: steel defects, from Kaggle's archive to patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tk.runtime.options import Overwrite

Workers = Annotated[int, typer.Option(min=1, help="Processes; they do not change a byte.")]


def add_steel_commands(data: typer.Typer) -> None:
    """Add the commands to `tk data`."""
    for function in (download, severstal, patches):
        data.command()(function)


def download(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder to make.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in DATA.")
    ] = False,
) -> None:
    """Fetch Severstal's steel defects (1.6 GB) from Kaggle: DATA/train.csv, DATA/train_images/.

    Needs Kaggle's client (pip install 'tk-vision[kaggle]'), a token, and the competition's rules
    accepted. Interrupted, the same command goes on. Without an account:
    tk data synth DATA --kind steel writes the same layout.

    \b
    Example:  tk data download steel
              tk data severstal steel steel-boxes
    """
    from tk.train.data.steel.download import download_severstal

    count = download_severstal(data, overwrite=overwrite)
    print(f"{data}: {count} files; next: tk data severstal {data} PREPARED")


def severstal(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with train.csv and train_images/.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    min_contour_area: Annotated[
        float, typer.Option(min=0, help="Parts of a mask with a smaller contour are left out.")
    ] = 32,
    min_box: Annotated[
        int, typer.Option(min=1, help="Parts with a narrower or lower box are left out, pixels.")
    ] = 8,
    pictures: Annotated[
        int, typer.Option(min=0, help="Annotated pictures to draw, every class in turn.")
    ] = 12,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out rows whose image is not there.")
    ] = False,
    workers: Workers = 1,
    overwrite: Overwrite = False,
) -> None:
    """Turn masks into boxes per class of defect: OUT/defects.json, and COCO beside it.

    OUT/annotations.json and OUT/images (a link to the images) are what tk train detector and
    tk train segmenter read. OUT/pictures shows boxes and masks of some strips.

    \b
    Example:  tk data severstal steel steel-boxes --workers 4
              tk data patches steel-boxes steel-patches
    """
    from tk.train.data.steel.prepare import prepare_severstal
    from tk.train.data.steel.report import prepare_lines

    summary = prepare_severstal(
        data,
        out,
        min_contour_area=min_contour_area,
        min_box=min_box,
        pictures=pictures,
        skip_missing=skip_missing,
        workers=workers,
        overwrite=overwrite,
    )
    print("\n".join(prepare_lines(out, summary)))


def patches(
    prepared: Annotated[
        Path, typer.Argument(metavar="PREPARED", help="Folder made by tk data severstal.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    target: Annotated[int, typer.Option(help="Side of a patch, pixels.")] = 224,
    context: Annotated[
        float, typer.Option(help="Seen round a defect, as a share of its longer side.")
    ] = 0.2,
    max_per_image: Annotated[
        int, typer.Option(help="Patches of one image at most, the largest of each class in turn.")
    ] = 5,
    background: Annotated[
        int, typer.Option(help="Patches without a defect, as the class no_defect.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of those.")] = 0,
    pictures: Annotated[
        int, typer.Option(min=0, help="Pictures OUT/.extraction/<image>_extraction.jpg to draw.")
    ] = 8,
    workers: Workers = 1,
    overwrite: Overwrite = False,
) -> None:
    """Cut a square with context round each defect: OUT/<class>/cropped/<image>_patch_<k>.png.

    OUT is what tk train embedder reads; patches of one image stay in one split. OUT/patches.json
    names image, box and square of each patch, and the weights that make up for rare classes.

    \b
    Example:  tk data patches steel-boxes steel-patches --background 400 --workers 4
              tk train embedder --data steel-patches --out RUN
    """
    from tk.train.data.steel.patches import cut_patches
    from tk.train.data.steel.report import patch_lines

    summary = cut_patches(
        prepared,
        out,
        target=target,
        context=context,
        max_per_image=max_per_image,
        background=background,
        seed=seed,
        pictures=pictures,
        workers=workers,
        overwrite=overwrite,
    )
    print("\n".join(patch_lines(out, summary)))
