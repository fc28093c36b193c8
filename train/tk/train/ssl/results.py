"""What a finished run leaves beside its checkpoints: floors, export, pictures, artifacts.json."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.files import read_json, sha256_file, write_json
from tk.runtime.images import read_image
from tk.runtime.preprocess import fit, spec_to_json
from tk.train.run.checkpoint import load_checkpoint, load_weights
from tk.train.run.distributed import is_main
from tk.train.run.folder import RunFolder
from tk.train.run.rng import rng_state, seed_all, set_rng_state
from tk.train.run.trainer import describe
from tk.train.ssl.artifacts import note_artifact
from tk.train.ssl.attention import class_attention
from tk.train.ssl.attention_plot import write_attention
from tk.train.ssl.backbone.base import Backbone, Features
from tk.train.ssl.backbone.export import build, export_backbone
from tk.train.ssl.plots import write_curves
from tk.train.ssl.probes.floors import floors
from tk.train.ssl.start import make_student, shape_of
from tk.train.ssl.task import SslTask

PLOTS, STAMP = "plots", ".results.json"
SHOWN = 8
"""Pictures whose attention is drawn."""


def write_results(
    task: SslTask, folder: RunFolder, best: Path, record: Callable[[dict[str, Any]], None]
) -> None:
    """Write what depends on the best weights; a run that was finished before is left alone.

    All processes call it; process 0 writes.
    """
    if not is_main():
        return
    made_from = {"checkpoint": sha256_file(best), "export": str(task.config.export_backbone)}
    stamp = folder.path / STAMP
    if stamp.exists() and read_json(stamp) == made_from:
        return
    state = load_checkpoint(best, task.name)
    backbone = _alone(task).eval()
    load_weights(backbone, state, best)
    known = next((r for r in folder.read_metrics() if r.get("event") == "floors"), None)
    found = known["floors"] if known else run_floors(task)
    if found and not known:
        # Of the last step, so that a resume from any earlier one measures it again.
        record({"event": "floors", "step": task.plan.steps, "floors": found})
    for name, figures in found.items():
        print(f"floor, {name.replace('_', ' ')}: {describe(figures)}", file=sys.stderr)
    _export(task, backbone, folder, int(state["step"]))
    _draw(task, backbone, folder, found)
    _say_verdict(task, folder)
    write_json(stamp, made_from)


def run_floors(task: SslTask) -> dict[str, dict[str, float]]:
    """Figures of raw pixels and of the network as it began; {} without labelled pictures."""
    labelled = task.judge.labelled
    if labelled is None:
        return {}
    before = rng_state()
    seed_all(task.config.seed)
    start = make_student(task.config).backbone.eval()
    set_rng_state(before)
    images = [read_image(file) for file in labelled.files]

    def untrained(squares: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            seen: Features = start(task.data.canvases(squares))
            return seen.cls.numpy()

    return floors(images, labelled.labels, labelled.asked, task.config.image_size, untrained)


def _export(task: SslTask, backbone: Backbone, folder: RunFolder, step: int) -> None:
    """The teacher's backbone, where the user wants it."""
    path, config = task.config.export_backbone, task.config
    if path is None:
        return
    about = {
        **task.labels(),
        "step": step,
        "mean": list(task.data.spec.mean),
        "std": list(task.data.spec.std),
        "image_spec": spec_to_json(task.image_spec),
    }
    export_backbone(path, backbone, shape_of(config), about)
    note_artifact(folder.path, "exported_backbone", path, about | {"backbone": shape_of(config)})


def _alone(task: SslTask) -> Backbone:
    """The teacher's backbone, or one like it if others would have to compute with it."""
    return build(shape_of(task.config)) if task.config.shard else task.teacher.backbone


def _draw(
    task: SslTask, backbone: Backbone, folder: RunFolder, found: dict[str, dict[str, float]]
) -> None:
    """Curves of the run, and where the network looks in a few of its pictures."""
    plots = folder.path / PLOTS
    plots.mkdir(exist_ok=True)
    curves = write_curves(plots, folder.read_metrics(), task.config.out_dim, found)
    note_artifact(folder.path, "curves", curves, task.labels())
    read, sample = task.data.photos.read, task.judge.sample[:SHOWN]
    squares = [fit(task.image_spec, read(int(place)))[0] for place in sample]
    canvases = task.data.canvases(squares).to(next(backbone.parameters()).device)
    shares = class_attention(backbone, canvases).cpu().numpy()
    attention = write_attention(plots, squares, shares)
    note_artifact(folder.path, "attention", attention, task.labels())


def _say_verdict(task: SslTask, folder: RunFolder) -> None:
    """What a user should read last: files that broke off, a collapse that lasted to the end."""
    if broken := task.data.photos.broken():
        text = f"{len(broken)} pictures could not be decoded, others took their places"
        folder.log(f"{text}: {', '.join(broken)}")
        print(f"{text}: {', '.join(broken[:SHOWN])}", file=sys.stderr)
    if kinds := task.watch.collapsed:
        text = f"this run ended collapsed ({', '.join(kinds)}): its features are of little use"
        folder.log(text)
        print(f"{text}; see the warnings in {folder.log_file}", file=sys.stderr)
