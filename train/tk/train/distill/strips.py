"""Steps 0 to 2: from Severstal's strips to patches by class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tk.runtime.errors import TkError
from tk.train.data.steel import report
from tk.train.data.steel.download import download_severstal
from tk.train.data.steel.layout import IMAGES, TABLE
from tk.train.data.steel.patches import cut_patches
from tk.train.data.steel.prepare import prepare_severstal
from tk.train.data.steel.prepared import INDEX, PICTURES
from tk.train.distill.config import DistillConfig
from tk.train.distill.steps import Step

PREPARED, PATCHES = "prepared", "patches"


def crops_folder(config: DistillConfig) -> Path:
    """Where the patches are, or will be: `--data` itself, if it holds crops by class."""
    return config.source() if data_kind(config) == "crops" else config.out / PATCHES


def data_kind(config: DistillConfig) -> str:
    """What `--data` is: `strips`, `prepared` or `crops`; it may have to be fetched first."""
    data = config.source()
    if not data.is_dir():
        if not config.download:
            raise TkError(
                f"{data} does not exist",
                expected=f"{TABLE} and {IMAGES}/, a folder of tk data severstal, or "
                "<class>/cropped/*",
                fix=f"tk data synth {data} --kind steel, or --download to fetch Kaggle's",
            )
        download_severstal(data)
    if (data / TABLE).is_file():
        return "strips"
    if (data / INDEX).is_file():
        return "prepared"
    if config.out.resolve().is_relative_to(data.resolve()):
        raise TkError(
            f"the run folder {config.out} lies among the classes of {data}",
            fix="give an --out beside the data",
        )
    return "crops"


def strip_steps(config: DistillConfig) -> Iterator[Step]:
    """Yield the steps that make patches; none where there are crops already."""
    kind = data_kind(config)
    if kind == "crops":
        return
    prepared = config.out / PREPARED if kind == "strips" else config.source()
    if kind == "strips":
        yield _prepare(config, prepared)
    yield _patches(config, prepared)


def _patches(config: DistillConfig, prepared: Path) -> Step:
    options = {
        "target": config.target,
        "context": config.context,
        "max_per_image": config.max_per_image,
        "background": config.background,
    }
    return Step(
        "patches",
        "a square round each defect",
        partial(
            _told, report.patch_lines, cut_patches, prepared, config.out / PATCHES,
            **options, workers=config.workers, overwrite=True,
        ),
        options,
        [prepared / INDEX, prepared / PICTURES],
        [config.out / PATCHES],
    )  # fmt: skip


def _prepare(config: DistillConfig, prepared: Path) -> Step:
    data = config.source()
    options = {
        "min_contour_area": config.min_contour_area,
        "min_box": config.min_box,
        "skip_missing": config.skip_missing,
    }
    return Step(
        "prepare",
        "boxes of the masks",
        partial(
            _told, report.prepare_lines, prepare_severstal, data, prepared,
            **options, workers=config.workers, overwrite=True,
        ),
        options,
        [data / TABLE, data / IMAGES],
        [prepared / INDEX, prepared / "annotations.json"],
        # The data may have been moved: what the link led to is then gone, or no longer what counts.
        intact=lambda: (prepared / PICTURES).resolve() == (data / IMAGES).resolve(),
    )  # fmt: skip


def _told(
    lines: Callable[[Path, Any], list[str]],
    make: Callable[..., Any],
    source: Path,
    out: Path,
    **options: Any,
) -> None:
    """Make a folder of data and say on standard error what was found and what was left out."""
    summary = make(source, out, **options)
    found = lines(out, summary)
    print("\n".join(line for line in found if not line.startswith("next:")), file=sys.stderr)
