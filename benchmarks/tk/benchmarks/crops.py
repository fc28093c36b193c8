"""`tk bench crops`: the multi-crop of tk beside lightly's `DINOTransform`, per core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image as PILImage

from tk.benchmarks.crops_report import MARKDOWN, write_results
from tk.benchmarks.environment import environment
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.files import refuse_existing, refuse_inputs
from tk.runtime.images import decode_image, find_images
from tk.train.data.synth.scene import render_scene
from tk.train.ssl.multicrop import Image, MultiCrop, MultiCropSpec, normalise

SIDES = ("decode", "crops", "normalise", "lightly")


@dataclass(frozen=True)
class CropsBenchOptions:
    """What is timed, and how often.

    Attributes:
        images: folder of JPEG photos; None generates scenes.
        limit: so many pictures.
        sizes: longer sides of the generated scenes, pixels; one comparison for each.
        repeats: passes over the pictures that are timed, by turns; 5 or more.
        local_count: local crops of 96 pixels beside the two global ones of 224.
        seed: of the scenes and of the crops.
    """

    images: Path | None = None
    limit: int = 24
    sizes: tuple[int, ...] = (256, 500)
    repeats: int = 9
    local_count: int = 8
    seed: int = 0


def bench_crops(
    out: Path, options: CropsBenchOptions, *, overwrite: bool = False
) -> dict[str, Any]:
    """Time both, by turns in one process on one thread, and write the results.

    Args:
        out: gets results.json (raw samples) and results.md.
        options: see `CropsBenchOptions`.
        overwrite: replace what is in `out`.

    Returns:
        What is in `results.json`.

    Raises:
        TkError: fewer than 5 repeats, no pictures, or something is in `out`.
        EnvironmentLacks: lightly is not installed.
    """
    refuse_inputs(out, {"--images": options.images})
    refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    _check(options)
    facts = environment(1)
    with _one_thread():
        groups = [_measure(name, files, options) for name, files in _pictures(options)]
    results = {
        "benchmark": "crops",
        "environment": facts,
        "options": {**asdict(options), "images": options.images and options.images.name},
        "method": _method(options),
        "groups": groups,
    }
    write_results(out, results, overwrite=overwrite)
    return results


def _check(options: CropsBenchOptions) -> None:
    if options.repeats < 5:
        raise TkError(
            "too few repeats to tell what varies",
            expected="--repeats 5 or more",
            found=str(options.repeats),
        )
    if find_spec("lightly") is None:
        raise EnvironmentLacks(
            "tk bench crops compares with lightly, which is not installed",
            found="no lightly",
            fix="pip install --no-deps lightly==1.6.0 lightning-utilities tqdm",
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV and PyTorch to one thread."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _pictures(options: CropsBenchOptions) -> Iterator[tuple[str, list[bytes]]]:
    """Names and JPEG files of the groups that are compared."""
    if options.images is not None:
        paths = find_images(options.images)[: options.limit]
        yield options.images.name, [path.read_bytes() for path in paths]
        return
    for size in options.sizes:
        scenes = (render_scene(options.seed, index, size) for index in range(options.limit))
        yield f"generated scenes, longer side {size}", [scene.jpeg for scene in scenes]


def _measure(name: str, files: Sequence[bytes], options: CropsBenchOptions) -> dict[str, Any]:
    """Time all sides on one group of pictures.

    Returns:
        seconds of CPU and wall per picture: side -> one number per repeat; what was timed.
    """
    pictures = [decode_image(data, "picture") for data in files]
    sides = _sides(files, pictures, options)
    for work in sides.values():  # imports, caches, code paths
        work()
    samples: dict[str, dict[str, list[float]]] = {
        clock: {side: [] for side in SIDES} for clock in ("cpu", "wall")
    }
    for number in range(options.repeats):
        # Neither is always first after the other.
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            sides[side]()
            samples["cpu"][side].append((time.process_time() - cpu) / len(files))
            samples["wall"][side].append((time.perf_counter() - wall) / len(files))
    return {
        "name": name,
        "pictures": len(files),
        "mean_pixels": round(float(np.mean([p.shape[0] * p.shape[1] for p in pictures]))),
        "samples": samples,
        **summarise(samples["cpu"]),
    }


def _sides(
    files: Sequence[bytes], pictures: Sequence[Image], options: CropsBenchOptions
) -> dict[str, Callable[[], None]]:
    """One pass over all pictures, for each of `SIDES`."""
    from lightly.transforms.dino_transform import DINOTransform

    spec = MultiCropSpec(local_count=options.local_count)
    crop = MultiCrop(spec)
    theirs: Any = DINOTransform(n_local_views=options.local_count)
    opened = [PILImage.fromarray(picture) for picture in pictures]
    views = [_stacked(crop(picture, np.random.default_rng(0)), spec) for picture in pictures]
    _same_shapes([normalise(one, spec) for one in views[0]], theirs(opened[0]))
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)

    def decode() -> None:
        for data in files:
            decode_image(data, "picture")

    def crops() -> None:
        for picture in pictures:
            _stacked(crop(picture, rng), spec)

    def normalised() -> None:
        for one in views:
            for part in one:
                normalise(part, spec)

    def lightly() -> None:
        for picture in opened:
            theirs(picture)

    return dict(zip(SIDES, (decode, crops, normalised, lightly), strict=True))


def _stacked(views: Sequence[Image], spec: MultiCropSpec) -> list[torch.Tensor]:
    """Global and local views as two uint8 tensors, as training takes them."""
    parts = views[: spec.global_count], views[spec.global_count :]
    return [torch.from_numpy(np.stack(part)) for part in parts if part]


def _same_shapes(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    """Both must make the same: number, sizes and type of views."""
    made = [(tuple(view.shape), view.dtype) for part in ours for view in part]
    wanted = [(tuple(view.shape), view.dtype) for view in theirs]
    if made != wanted:
        raise TkError("both do not make the same views", expected=str(wanted), found=str(made))


def summarise(cpu: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds, rates and ratios of one group.

    Args:
        cpu: side -> CPU seconds per picture, one per repeat.

    Returns:
        `rows`: per stage min, median, max in ms and pictures/s of the median; `ratios`: lightly's
        time over tk's, repeat by repeat: min, median, max.
    """
    stages = {
        **cpu,
        "tk": [a + b for a, b in zip(cpu["crops"], cpu["normalise"], strict=True)],
    }
    ratio = partial(_ratio, cpu["lightly"])
    decode = cpu["decode"]
    return {
        "rows": {name: _spread(values) for name, values in stages.items()},
        "ratios": {
            "same_output": _three(ratio(stages["tk"])),
            "crops_only": _three(ratio(cpu["crops"])),
            "with_decode": _three(
                _ratio(_sum(cpu["lightly"], decode), _sum(stages["tk"], decode)),
            ),
        },
    }


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def _sum(one: Sequence[float], two: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, two, strict=True)]


def _three(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    found = {f"{name}_ms": value * 1e3 for name, value in _three(seconds).items()}
    return {**found, "per_second": 1 / float(np.median(seconds))}


def _method(options: CropsBenchOptions) -> list[str]:
    return [
        "one process, one thread (cv2.setNumThreads(1), torch.set_num_threads(1)); CPU time of "
        f"the process; {options.repeats} passes over all pictures, by turns and in turning order, "
        "after one pass that does not count",
        f"both make 2 crops of 224 and {options.local_count} of 96 pixels with the same ranges and "
        "probabilities: lightly's defaults, which the tests read off its DINOTransform and compare "
        "with tk's; distributions and pixels of each operation are compared there too",
        "`crops`: decoded picture to uint8 crops, stacked; `normalise`: these to float32, channels "
        "first, mean and deviation (in a training this runs on the device); `lightly`: decoded "
        "PIL picture to the same float32 tensors",
        "`same output` is lightly / (crops + normalise); `crops alone` leaves tk's normalisation "
        "out, as workers do; `with decoding` adds the same JPEG decoding (Pillow) to both",
    ]
