"""What a finished run leaves: test figures, prototypes, suspected crops, the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.files import read_json, sha256_file, write_json
from tk.runtime.metrics.classification import accuracy
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.outliers import find_outliers, write_outliers
from tk.train.embedder.prototypes import make_prototypes
from tk.train.embedder.report.measured import Measured
from tk.train.embedder.split import SPLITS
from tk.train.embedder.task import EmbedderTask
from tk.train.run.checkpoint import load_checkpoint, result_weights
from tk.train.run.distributed import is_main
from tk.train.run.folder import RunFolder
from tk.train.run.trainer import describe

REPORT, OUTLIERS, STAMP = "report.html", "outliers.csv", ".results.json"


def write_results(
    task: EmbedderTask, folder: RunFolder, best: Path, record: Callable[[dict[str, Any]], None]
) -> None:
    """Measure the best weights on the test split and write what depends on them.

    All processes call it; process 0 writes. A run that was finished before is left alone.
    """
    digest = sha256_file(best)
    made_from = {"checkpoint": digest, "options": _options(task.config)}
    if _made_from(folder) == made_from:
        return
    state = load_checkpoint(best, task.name)
    for name, part in task.parts().items():
        part.load_state_dict(result_weights(state, name))
    task.model.eval()
    found = task.measure("test")
    vectors = {name: task.embed_split(name) for name in ("val", "test")}
    vectors["train"] = task.embed_crops(task.splits["train"])
    if not is_main():
        return
    labels = {name: task.labels(name) for name in vectors}
    gallery = make_prototypes(task.config, task.classes, vectors, labels, digest)
    found |= _named_by_prototypes(task, gallery.centroids, vectors["test"])
    if found and not any(r.get("event") == "test" for r in folder.read_metrics()):
        # Of the last step, so that a resume from any earlier one measures it again.
        step = task.config.in_steps(len(task)).steps
        record({"event": "test", "step": step, "weights_of_step": state["step"], **found})
        print(f"test: {describe(found)}", file=sys.stderr)
        folder.log(f"test with the weights of step {state['step']}: {describe(found)}")
    gallery.write(folder.path)
    _write_outliers(task, folder, vectors)
    from tk.train.embedder.report.write import write_report  # brings matplotlib and scikit-learn

    write_report(
        folder.path,
        folder.path.resolve().name,
        task.classes,
        folder.read_metrics(),
        _measured(task, "test" if len(vectors["test"]) else "val", vectors),
        _measured(task, "train", vectors),
        _facts(task, state, "test" if len(vectors["test"]) else "val"),
    )
    write_json(folder.path / STAMP, made_from)
    print(f"look at {folder.path / REPORT}", file=sys.stderr)


def _options(config: EmbedderConfig) -> dict[str, float]:
    """Options that change the results of a run, but not its weights."""
    names = ("max_refs_per_class", "sub_prototypes", "false_rejections")
    return {name: getattr(config, name) for name in names}


def _made_from(folder: RunFolder) -> dict[str, Any]:
    """What the results in a folder were made from; {} if they are not all there."""
    stamp = folder.path / STAMP
    whole = stamp.exists() and (folder.path / REPORT).exists()
    return dict(read_json(stamp)) if whole else {}


def _named_by_prototypes(
    task: EmbedderTask, centroids: NDArray[np.float32], vectors: NDArray[np.float32]
) -> dict[str, Any]:
    """Accuracy when the nearest centroid names a crop, as the annotator does."""
    if not len(vectors):
        return {}
    nearest = (vectors @ centroids.T).argmax(axis=1)
    return {"test_prototype_accuracy": accuracy(task.labels("test"), nearest)}


def _files(task: EmbedderTask, split: str) -> tuple[str, ...]:
    root = task.config.data
    return tuple(crop.path.relative_to(root).as_posix() for crop in task.splits[split])


def _write_outliers(
    task: EmbedderTask, folder: RunFolder, vectors: dict[str, NDArray[np.float32]]
) -> None:
    """List suspected crops of all splits; one centre per class would raise false alarms."""
    path = folder.path / OUTLIERS
    if task.margin.sub_centers == 1:
        path.unlink(missing_ok=True)
        return
    splits = [split for split in SPLITS if len(vectors[split])]
    outliers = find_outliers(
        np.concatenate([vectors[split] for split in splits]),
        np.concatenate([task.labels(split) for split in splits]),
        task.margin.centres().cpu().numpy(),
    )
    files = [name for split in splits for name in _files(task, split)]
    write_outliers(path, outliers, files, task.classes)
    folder.log(f"{len(outliers)} of {len(files)} crops may be mislabelled: see {OUTLIERS}")


def _measured(task: EmbedderTask, split: str, vectors: dict[str, NDArray[np.float32]]) -> Measured:
    crops = task.splits[split]
    return Measured(
        files=_files(task, split),
        labels=task.labels(split),
        embeddings=vectors[split],
        probabilities=task.logits(vectors[split]).softmax(dim=1).numpy(),
        canvas=lambda row: task.canvas(crops[row]),
    )


def _facts(task: EmbedderTask, state: dict[str, Any], held: str) -> dict[str, str]:
    config = task.config
    return {
        "held": {"test": "test split", "val": "validation split"}[held],
        "model": config.model_id + (", frozen backbone" if config.freeze_backbone else ""),
        "embedding": f"{config.emb_dim} numbers",
        "loss": f"{config.loss}, s={config.scale:g}, m={config.margin:g}",
        "canvas": f"{config.img_size} x {config.img_size} pixels, crop mode {config.crop_mode}",
        "augmentation": config.aug,
        "crops": ", ".join(f"{name} {len(crops)}" for name, crops in task.splits.items()),
        "left out": f"{len(task.skipped)} files",
        "weights": f"of step {state['step']}",
    }
