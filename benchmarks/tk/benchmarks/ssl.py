"""`tk bench ssl`: DINO and iBOT on handwritten digits, beside floors and runs that must fail."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tk.benchmarks.environment import environment
from tk.benchmarks.ssl_report import MARKDOWN, write_results
from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, read_json, refuse_existing, refuse_inputs, write_json
from tk.train.run.folder import RunFolder
from tk.train.ssl.config import SslConfig
from tk.train.ssl.train import train_ssl

HELD_OUT = 360
RECIPE: dict[str, Any] = {
    "preset": "small",
    "image_size": 16,
    "patch_size": 4,
    "vit_embed_dim": 64,
    "vit_depth": 4,
    "vit_num_heads": 4,
    "aug_local_crops": 4,
    "aug_global_scale": (0.5, 1.0),
    "aug_local_scale": (0.25, 0.7),
    # A mirrored digit is another sign; grey pictures of 8 pixels have no colour and no detail.
    "aug_hflip_prob": 0.0,
    "aug_saturation": 0.0,
    "aug_hue": 0.0,
    "aug_grayscale_prob": 0.0,
    "aug_gaussian_blur_prob": 0.0,
    "aug_solarize_prob": 0.0,
    "eval_every": 20,
}
"""What is trained: 2 crops of 16 and 4 of 8 pixels, 200 thousand weights."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dino": ("DINO, --preset small", {}),
    "ibot": ("iBOT, --preset small", {"algorithm": "ibot"}),
    "sinkhorn": ("DINO, Sinkhorn instead of the mean centre", {"centering": "sinkhorn"}),
    "none": ("DINO without centering: must fail", {"centering": "none"}),
    "norm-none": ("DINO, no batch norm in the head", {"head_norm": "none"}),
    "eps": ("DINO, AdamW epsilon 1e-8", {"adam_eps": 1e-8}),
    "statistics": ("DINO, normalised as ImageNet", {"aug_statistics": "model"}),
    "init": ("DINO, weights drawn with deviation 0.02", {"vit_init": "normal"}),
}
"""Name -> what it is, what differs from the recipe."""


@dataclass(frozen=True)
class SslBenchOptions:
    """What is trained.

    Attributes:
        work: data and runs; runs that are there are not trained again.
        runs: variant -> number of seeds.
        epochs: of the schedules: passes over the 1437 pictures.
        short: variants that are stopped after a quarter of it: they show how something fails.
        threads: of PyTorch.
    """

    work: Path
    runs: dict[str, int] = field(default_factory=lambda: {"dino": 3, "ibot": 1, "none": 1})
    epochs: int = 120
    short: tuple[str, ...] = ("none", "norm-none", "eps", "statistics", "init")
    threads: int = 1


def parse_runs(texts: Sequence[str]) -> dict[str, int]:
    """`["dino=3"]` -> `{"dino": 3}`.

    Raises:
        TkError: another form, or an unknown variant.
    """
    found = {}
    for text in texts:
        variant, _, seeds = text.partition("=")
        if variant not in VARIANTS or not seeds.isdecimal() or not int(seeds):
            raise TkError(
                f"--run {text} names no runs",
                expected="VARIANT=SEEDS with a variant of " + ", ".join(VARIANTS),
            )
        found[variant] = int(seeds)
    return found


def bench_ssl(
    out: Path, options: SslBenchOptions, *, only: str = "", overwrite: bool = False
) -> dict[str, Any]:
    """Train what was not trained yet, and write the results.

    Args:
        out: gets results.json and results.md.
        only: train this run (`dino-1`) and write no results; for several processes at a time.

    Returns:
        What is in `results.json`; {} with `only`.

    Raises:
        TkError: an unknown run.
    """
    names = {f"{v}-{seed}": (v, seed) for v, count in options.runs.items() for seed in range(count)}
    if only and only not in names:
        raise TkError(f"there is no run {only!r}", expected=", ".join(names))
    if not only:
        refuse_inputs(out, {"--work": options.work})
        refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    facts = environment(options.threads)
    data = write_data(options.work / "digits")
    runs = [_run(options, data, name, *names[name]) for name in names if only in ("", name)]
    if only:
        return {}
    results = {
        "benchmark": "ssl",
        "environment": facts,
        "recipe": RECIPE,
        "floors": _floors(options),
        "variants": [_summary(name, runs) for name in options.runs],
        "runs": runs,
    }
    write_results(out, results, overwrite=overwrite)
    return results


def write_data(folder: Path) -> Path:
    """Write the digits of scikit-learn, 8 x 8 pixels: `train/<class>/`, 360 held out in `val/`."""
    if folder.exists():
        return folder
    import cv2
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    places = np.arange(len(digits.target))
    train, held = train_test_split(
        places, test_size=HELD_OUT, stratify=digits.target, random_state=0
    )
    with atomic_folder(folder) as made:
        for split, chosen in (("train", train), ("val", held)):
            for place in chosen:
                file = made / split / str(digits.target[place]) / f"{place:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture = np.rint(digits.images[place] * (255 / 16)).astype(np.uint8)
                file.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return folder


def _config(options: SslBenchOptions, data: Path, name: str, variant: str, seed: int) -> SslConfig:
    values = RECIPE | VARIANTS[variant][1]
    return SslConfig(
        train_dir=[data / "train"],
        probe_dir=data,
        out=options.work / name,
        epochs=options.epochs // (4 if variant in options.short else 1),
        seed=seed,
        threads=options.threads,
        device="cpu",
        **values,
    )


def _run(
    options: SslBenchOptions, data: Path, name: str, variant: str, seed: int
) -> dict[str, Any]:
    """Train, unless it was done before, and read the figures."""
    config = _config(options, data, name, variant, seed)
    spent = options.work / f"{name}.json"
    if not spent.exists():
        wall, cpu = time.perf_counter(), time.process_time()
        train_ssl(config.model_copy(update={"overwrite": True}))
        seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        write_json(spent, seconds)
    records = RunFolder(config.out, config.file_names()).read_metrics()
    evaluations = [record for record in records if record.get("event") == "eval"]
    steps = [record for record in records if "event" not in record]
    return {
        "name": name,
        "variant": variant,
        "seed": seed,
        "steps": len(steps),
        "loss": float(np.mean([record["dino_loss"] for record in steps[-50:]])),
        "evaluations": evaluations,
        "collapses": [r for r in records if r.get("event") == "collapse"],
        **read_json(spent),
    }


def _floors(options: SslBenchOptions) -> dict[str, Any]:
    """Raw pixels, and the network of the first run before it learned."""
    name = f"{next(iter(options.runs))}-0"
    records = RunFolder(options.work / name).read_metrics()
    return dict(next(r["floors"] for r in records if r.get("event") == "floors"))


def _summary(variant: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and values by seed of the last evaluation."""
    own = [run for run in runs if run["variant"] == variant]
    row: dict[str, Any] = {
        "variant": variant,
        "what": VARIANTS[variant][0],
        "seeds": len(own),
        "steps": own[0]["steps"],
        "cpu_s": [run["cpu_s"] for run in own],
        "collapses": sorted({c["kind"] for run in own for c in run["collapses"]}),
    }
    for figure in ("knn", "linear", "rank_me"):
        values = [run["evaluations"][-1][figure] for run in own]
        row[figure] = {"mean": float(np.mean(values)), "by_seed": values}
    return row
