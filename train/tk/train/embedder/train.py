"""Train the embedder and leave everything that a user needs from it; load it again."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.data import find_crops
from tk.train.embedder.model import EmbedNet
from tk.train.embedder.results import write_results
from tk.train.embedder.task import EmbedderTask
from tk.train.run.checkpoint import config_of, image_spec_of, load_checkpoint, load_weights
from tk.train.run.distributed import barrier, is_main
from tk.train.run.folder import RunFolder
from tk.train.run.launch import launch, speaks
from tk.train.run.loop import fit, prepare


def train_embedder(config: EmbedderConfig) -> Path:
    """Train as `config` says; a run that was begun in the folder goes on.

    Returns:
        the best checkpoint; beside it lie `splits.json`, `prototypes.npz`, `gallery.json`,
        `outliers.csv`, `report.html`, metrics and log.

    Raises:
        TkError: data or options that cannot be used.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    best = launch(train_in_process, config)
    if speaks():
        print(f"trained; best weights in {best}", file=sys.stderr)
    return best


def train_in_process(config: EmbedderConfig) -> Path:
    """Train in this process, which may be one of several."""
    folder = RunFolder(config.out)
    if folder.last.exists() and not (config.resume or config.overwrite):
        config = config.model_copy(update={"resume": "last"})
    if config.auto_generate_masks:
        _make_masks(config)
    prepare(config)
    task = EmbedderTask(config)
    return fit(task, config.in_steps(len(task)), partial(write_results, task, folder))


def _make_masks(config: EmbedderConfig) -> None:
    """Make missing masks with SAM-2; the other processes wait."""
    if is_main():
        from tk.train.data.masks.generate import ensure_masks

        _, crops = find_crops(config.data, merge=config.merge, exclude=config.exclude)
        report = ensure_masks(
            config.data,
            crops,
            sam2_cfg=config.sam2_cfg,
            sam2_ckpt=config.sam2_ckpt,
            device=config.device,
            out=config.out,
        )
        print(report.summary(), file=sys.stderr)
    barrier()


def load_embedder(path: Path) -> tuple[EmbedNet, dict[str, Any]]:
    """Rebuild a trained embedder.

    Returns:
        the network in eval mode on the CPU, and the checkpoint (see `tk.train.run.checkpoint` for
        its classes, image_spec and crop_spec).

    Raises:
        TkError: not a checkpoint of an embedder.
    """
    state = load_checkpoint(path, "embedder")
    config = config_of(state)
    model = EmbedNet(
        config["model_id"],
        config["emb_dim"],
        image_spec_of(state).height,
        head_norm=config.get("head_norm", "batch"),
    )
    load_weights(model, state, path)
    return model.eval(), state
