"""A folder of generated steel strips in Severstal's layout: `train.csv` and `train_images/`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tk.runtime.files import atomic_folder
from tk.runtime.progress import progress
from tk.train.data.parallel import check_counts, in_order
from tk.train.data.steel.layout import IMAGES, TABLE
from tk.train.data.steel.render import DEFECTS, render_strip
from tk.train.data.steel.runs import encode_column_runs
from tk.train.data.steel.table import write_table

Rows = list[tuple[str, int, str]]


@dataclass(frozen=True)
class SteelSummary:
    """What was written: strips, those without a defect, masks of each class."""

    images: int
    without: int
    per_class: dict[int, int]


def write_steel_dataset(
    out: Path,
    *,
    images: int,
    seed: int,
    balanced: bool = False,
    workers: int = 1,
    overwrite: bool = False,
) -> SteelSummary:
    """Render strips into a folder that appears only when it is whole.

    The files depend on `images`, `seed` and `balanced` alone, not on `workers`.

    Args:
        out: the folder to make.
        images: number of strips, 1 or more.
        seed: of every random choice, 0 or greater.
        balanced: every kind of defect as often as the others; else as in the competition.
        workers: processes that render.
        overwrite: replace `out` where it exists and is not empty.

    Raises:
        TkError: an argument is out of range, or `out` is not empty and `overwrite` is false.
    """
    check_counts(images=images, seed=seed, workers=workers)
    rows: Rows = []
    with atomic_folder(out, overwrite=overwrite, own=f"{IMAGES}/strip_*_00000.jpg") as folder:
        (folder / IMAGES).mkdir()
        job = partial(_write_strip, folder / IMAGES, seed, balanced)
        with progress("strips", images) as bar, in_order(job, range(images), workers) as strips:
            for found in strips:
                rows += found
                bar.advance()
        write_table(folder / TABLE, rows)
    counts = Counter(class_id for _, class_id, _ in rows)
    defective = len({name for name, _, _ in rows})
    return SteelSummary(images, images - defective, {kind: counts[kind] for kind in DEFECTS})


def _write_strip(folder: Path, seed: int, balanced: bool, index: int) -> Rows:
    strip = render_strip(seed, index, balanced=balanced)
    name = f"strip_{seed}_{index:05d}.jpg"  # of another seed is another strip: so is its name
    (folder / name).write_bytes(strip.jpeg)
    masks = sorted(strip.masks.items())
    return [(name, kind, encode_column_runs(mask)) for kind, mask in masks if mask.any()]
