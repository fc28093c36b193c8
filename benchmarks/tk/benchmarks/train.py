"""`tk bench train`: epochs of an embedder on a frozen backbone, with and without kept features."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tk.benchmarks.environment import available_cores, environment
from tk.benchmarks.train_report import MARKDOWN, write_results
from tk.benchmarks.train_summary import FIGURES, summarise_quality, summarise_speed
from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing, refuse_inputs
from tk.train.data.synth.dataset import write_tools_dataset
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.task import EmbedderTask
from tk.train.run.loop import fit, prepare

SCENE = 640
"""Longer side of the generated scenes, pixels."""
OTHER = 1000
"""Added to the seed of the data for the scenes that the second backbone learns from."""


@dataclass(frozen=True)
class TrainBenchOptions:
    """What is trained, and how often.

    Attributes:
        data: crops as for `tk train embedder`; None generates tools.
        images: generated scenes, about five crops each.
        model_id, weights: backbone of the timed part; without a file its weights are random.
        img_size: side of its canvas, pixels.
        views: views of each crop whose features are kept in the timed part.
        epochs: of the timed part, 3 or more: the first does not count.
        accuracy_model: backbone of the second part, which learns from other generated tools
            before it is frozen; empty leaves the part out.
        accuracy_size: side of its canvas, pixels.
        accuracy_epochs: of the second part.
        accuracy_views: numbers of views that the second part compares with fresh ones.
        warm_images, warm_epochs: scenes from which the second backbone learns, and how long.
        seeds: of weights, splits and order; the second part trains with each of so many.
        batch_size: as for `tk train embedder`.
        seed: of the generated data, and the first of the seeds.
        threads: CPU threads of PyTorch; 0 takes the cores that this process may use.
        device: as for `tk train embedder`.
    """

    data: Path | None = None
    images: int = 100
    model_id: str = "vit_small_patch16_224"
    weights: Path | None = None
    img_size: int = 224
    views: int = 4
    epochs: int = 4
    accuracy_model: str = "test_resnet"
    accuracy_size: int = 96
    accuracy_epochs: int = 16
    accuracy_views: tuple[int, ...] = (1, 4, 8)
    warm_images: int = 300
    warm_epochs: int = 12
    seeds: int = 3
    batch_size: int = 32
    seed: int = 0
    threads: int = 0
    device: str = "auto"


def bench_train(
    out: Path, options: TrainBenchOptions, *, overwrite: bool = False
) -> dict[str, Any]:
    """Train with and without kept features and write the results.

    Args:
        out: gets results.json (raw samples) and results.md.
        options: see `TrainBenchOptions`.
        overwrite: replace what is in `out`.

    Returns:
        What is in `results.json`.

    Raises:
        TkError: bad input.
    """
    refuse_inputs(out, {"--data": options.data, "--weights": options.weights})
    refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    if options.epochs < 3:
        raise TkError(
            "a benchmark of epochs needs some after the first",
            expected="--epochs 3 or more",
            found=str(options.epochs),
        )
    threads = options.threads or available_cores()
    facts = environment(threads)
    threads_before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="tk-bench-") as temporary:
            bench = _Bench(options, threads, Path(temporary))
            timed, judged = bench.time(), bench.judge()
    finally:
        torch.set_num_threads(threads_before)
    results = {
        "benchmark": "train",
        "environment": facts,
        "options": _shareable(options),
        "method": _method(options, threads),
        "crops": timed[0]["crops"],
        "speed": summarise_speed(timed),
        "quality": summarise_quality(timed) + summarise_quality(judged),
        "runs": timed + judged,
    }
    write_results(out, results, overwrite=overwrite)
    return results


class _Bench:
    """Data and run folders of one benchmark, all below `folder`."""

    def __init__(self, options: TrainBenchOptions, threads: int, folder: Path) -> None:
        self.options, self.threads, self.folder = options, threads, folder
        self.data = options.data or self._tools("tools", options.images, options.seed)

    def _tools(self, name: str, images: int, seed: int) -> Path:
        out = self.folder / name
        write_tools_dataset(out, images=images, size=SCENE, seed=seed)
        return out / "crops"

    def config(self, **changes: Any) -> EmbedderConfig:
        """Options of a run; those not named here are the defaults of `tk train embedder`."""
        options = self.options
        values = {
            "data": self.data,
            "out": self.folder / "run",
            "model_id": options.model_id,
            "weights": options.weights,
            "pretrained": False,
            "freeze_backbone": True,
            "img_size": options.img_size,
            # Neighbours in a generated scene share a background, which recall@1 would find.
            "crop_mode": "bbox" if options.data else "mask",
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "min_per_class": 1,
            "threads": self.threads,
            "device": options.device,
            "seed": options.seed,
        }
        return EmbedderConfig(**{**values, **changes})

    def time(self) -> list[dict[str, Any]]:
        """The backbone of the user's choice, without and with kept features."""
        return [self._run(self.config(feature_views=views)) for views in (0, self.options.views)]

    def judge(self) -> list[dict[str, Any]]:
        """A backbone that knows tools: what do views that repeat cost in accuracy?"""
        options = self.options
        if not options.accuracy_model:
            return []
        second = {"model_id": options.accuracy_model, "img_size": options.accuracy_size}
        config = self.config(
            **second,
            data=self._tools("other", options.warm_images, options.seed + OTHER),
            out=self.folder / "backbone",
            weights=None,
            freeze_backbone=False,
            crop_mode="mask",
            val_split=0.1,
            test_split=0.0,
            epochs=options.warm_epochs,
            lr=3e-3,
            margin_warmup=0.8,
        )
        prepare(config)
        task = EmbedderTask(config)
        learned = fit(task, config.in_steps(len(task)))
        return [
            self._run(
                self.config(
                    **second,
                    weights=learned,
                    feature_views=views,
                    epochs=options.accuracy_epochs,
                    seed=options.seed + seed,
                )
            )
            for seed in range(options.seeds)
            for views in (0, *options.accuracy_views)
        ]

    def _run(self, config: EmbedderConfig) -> dict[str, Any]:
        try:
            return train_and_time(config)
        finally:
            shutil.rmtree(config.out, ignore_errors=True)


class _TimedTask(EmbedderTask):
    """Takes the time where the loop comes by.

    Attributes:
        build: seconds in which features were computed.
        epochs: per epoch the times of its first sample, its last step and its figures.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__(config)
        self.build = self.stepped = 0.0
        self.epochs: list[dict[str, float]] = []
        self._fresh = True

    def begin(self, device: torch.device) -> None:
        started = time.perf_counter()
        super().begin(device)
        self.build = time.perf_counter() - started

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> tuple[Any, int]:
        if self._fresh:
            self.epochs.append({"start": time.perf_counter()})
            self._fresh = False
        return super().sample(index, epoch, rng)

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.stepped = time.perf_counter()

    def evaluate(self) -> dict[str, Any]:
        figures = super().evaluate()
        self.epochs[-1] |= {"trained": self.stepped, "evaluated": time.perf_counter()}
        self._fresh = True
        return figures


def train_and_time(config: EmbedderConfig) -> dict[str, Any]:
    """Train one embedder, as `tk train embedder` does, and test its last weights.

    Returns:
        options that differ between runs, `epochs` (seconds, see below), `build_s`, `disk_bytes`,
        and `quality`: name -> [right, of all] on validation and test crops together.
        An epoch has `train` (reading samples and all steps), `evaluate`, and `whole`, which is
        these, metrics and checkpoints, until the next epoch begins.
    """
    prepare(config)
    task = _TimedTask(config)
    fit(task, config.in_steps(len(task)))
    ends = [epoch["start"] for epoch in task.epochs[1:]] + [time.perf_counter()]
    task.model.eval()
    return {
        "model_id": config.model_id,
        "weights": "random" if config.weights is None else "trained",
        "views": config.feature_views,
        "seed": config.seed,
        "crops": {name: len(crops) for name, crops in task.splits.items()},
        "build_s": task.build,
        "disk_bytes": sum(path.stat().st_size for path in config.out.rglob("*.npy")),
        "feature_size": task.model.feature_size,
        "epochs": [
            {
                "train": epoch["trained"] - epoch["start"],
                "evaluate": epoch["evaluated"] - epoch["trained"],
                "whole": end - epoch["start"],
            }
            for epoch, end in zip(task.epochs, ends, strict=True)
        ],
        "quality": _quality(task),
    }


def _quality(task: EmbedderTask) -> dict[str, list[int]]:
    """Right answers and questions; no choice was made by these crops: the weights are the last."""
    counts = {name: [0, 0] for name in FIGURES}
    for split in ("val", "test"):
        figures, labels = task.measure(split), task.labels(split)
        if not len(labels):
            continue
        alone = np.bincount(labels)[labels] < 2  # nothing to find for these
        for name, asked in zip(FIGURES, (len(labels), int((~alone).sum())), strict=True):
            if asked:
                counts[name][0] += round(figures[f"{split}_{name}"] * asked)
                counts[name][1] += asked
    return counts


def _shareable(options: TrainBenchOptions) -> dict[str, Any]:
    """Options without the folders above: results are meant to be passed on."""
    values = asdict(options)
    return {k: v.name if isinstance(v, Path) else v for k, v in values.items()}


def _method(options: TrainBenchOptions, threads: int) -> list[str]:
    lines = [
        "one process; `tk train embedder --freeze_backbone` with the same options and seed, "
        "`--feature_views 0` (the backbone runs in every epoch) and `--feature_views "
        f"{options.views}`; {threads} threads, samples are prepared in the same process",
        f"{options.epochs} epochs each, the first left out, medians of the others; `whole` is from "
        "the first sample of an epoch to that of the next: samples, steps, validation, metrics "
        "and checkpoints",
        "the features of validation and test crops are kept too; `build` is all of them",
        "view v of a crop is the canvas that epoch v would draw without kept features; with fewer "
        "views than epochs they repeat",
        "accuracy (nearest class centre) and recall@1 (leave one out among the crops of a split) "
        "of the last weights on validation and test crops together; 95% Wilson intervals; seeds "
        "share the data but not the split, so the intervals of several seeds are a little narrow",
    ]
    if options.accuracy_model:
        lines.append(
            f"{options.accuracy_model} first learned for {options.warm_epochs} epochs from "
            f"{options.warm_images} other generated scenes, then it was frozen"
        )
    return lines
