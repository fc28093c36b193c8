"""Train the embedder, test it, write its prototypes; load it again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.model import EmbedNet
from tk.train.embedder.prototypes import write_prototypes
from tk.train.embedder.split import write_splits
from tk.train.embedder.task import EmbedderTask, choose_references
from tk.train.run.checkpoint import config_of, image_spec_of, load_checkpoint, load_weights
from tk.train.run.folder import RunFolder
from tk.train.run.loop import fit, prepare


def train_embedder(config: EmbedderConfig) -> Path:
    """Train as `config` says; a run that was begun in the folder goes on.

    Returns:
        the best checkpoint; beside it lie `splits.json`, `prototypes.npz`, metrics and log.

    Raises:
        TkError: data or options that cannot be used.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    folder = RunFolder(config.out)
    if folder.last.exists() and not (config.resume or config.overwrite):
        config = config.model_copy(update={"resume": "last"})
    prepare(config)
    task = EmbedderTask(config)
    if config.resume or config.overwrite or not folder.config.exists():
        write_splits(config.out / "splits.json", config.data, task.classes, task.splits)
    best = fit(task, config.in_steps(len(task)))
    _finish(task, folder, best)
    print(f"trained {len(task.classes)} classes; best weights in {best}", file=sys.stderr)
    return best


def _finish(task: EmbedderTask, folder: RunFolder, best: Path) -> None:
    """Test the best weights and write prototypes of the train split."""
    state = load_checkpoint(best, task.name)
    task.model.load_state_dict(state["model"])
    task.load_extra_state(state["extra"])
    task.model.eval()
    known = any(record.get("event") == "test" for record in folder.read_metrics())
    if not known and (figures := task.measure(task.test, "test")):
        folder.append_metrics({"step": state["step"], "event": "test", **figures})
        text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        folder.log(f"test with the weights of step {state['step']}: {text}")
    config = task.config
    crops = choose_references(
        task.splits["train"], len(task.classes), config.max_refs_per_class, config.seed
    )
    labels = np.asarray([crop.label for crop in crops], np.int64)
    embeddings = task.embed(task.canvas(crop) for crop in crops)
    write_prototypes(folder.path / "prototypes.npz", task.classes, embeddings, labels)


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
    model = EmbedNet(config["model_id"], config["emb_dim"], image_spec_of(state).height)
    load_weights(model, state, path)
    return model.eval(), state
