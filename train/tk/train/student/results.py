"""What a finished run leaves: predictions on the test split and the figures that follow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.files import read_json, sha256_file, write_bytes, write_json
from tk.runtime.metrics.classification import confusion_matrix
from tk.train.classifier.cost import head_multiply_adds, multiply_adds
from tk.train.classifier.heads import count_parameters
from tk.train.embedder.figures import class_figures
from tk.train.run.checkpoint import load_checkpoint, result_weights
from tk.train.run.distributed import is_main
from tk.train.run.folder import RunFolder
from tk.train.run.trainer import describe
from tk.train.student.task import StudentTask

RESULTS, PREDICTIONS = "results.json", "predictions.npz"


def write_results(
    task: StudentTask, folder: RunFolder, best: Path, record: Callable[[dict[str, Any]], None]
) -> None:
    """Measure the best weights on the test split, in float32.

    All processes call it; process 0 writes `predictions.npz` (`probabilities` (N, C) float32,
    `labels` (N,) int64, `files` (N,) str) and `results.json`. A finished run is left alone.
    """
    digest = sha256_file(best)
    if _made_from(folder) == digest:
        return
    state = load_checkpoint(best, task.name)
    task.model.load_state_dict(result_weights(state, "model"))
    task.model.eval()
    content: dict[str, Any] = {"checkpoint": best.name, "sha256": digest, **_sizes(task)}
    labels = task.data.labels("test")
    if len(labels):
        probabilities = _softmax(task.predict("test", exact=True))
        content |= _figures(labels, probabilities, task.classes)
        if task.teacher and task.teacher.order:
            task.teacher.model.to(next(task.model.parameters()).device)
            spoken = _softmax(task.ask_teacher("test"))
            content["teacher"] = _figures(labels, spoken, task.classes)
            content["agreement"] = float(np.mean(spoken.argmax(1) == probabilities.argmax(1)))
    if not is_main():
        return
    if len(labels):
        _write_arrays(folder.path / PREDICTIONS, probabilities, labels, task.data.files("test"))
        plain = {f"test_{name}": content[name] for name in ("accuracy", "macro_f1")}
        step = task.config.in_steps(len(task)).steps
        record({"event": "test", "step": step, "weights_of_step": state["step"], **plain})
        print(f"test: {describe(plain)}", file=sys.stderr)
        folder.log(f"test with the weights of step {state['step']}: {describe(plain)}")
    write_json(folder.path / RESULTS, content)


def _made_from(folder: RunFolder) -> str:
    """Digest of the checkpoint that the results in a folder are of; empty if there are none."""
    path = folder.path / RESULTS
    return str(read_json(path)["sha256"]) if path.exists() else ""


def _sizes(task: StudentTask) -> dict[str, Any]:
    config = task.config
    macs = multiply_adds(task.model.encoder) + head_multiply_adds(task.model.head)
    return {
        "model_id": config.model_id,
        "img_size": config.img_size,
        "classes": list(task.classes),
        "parameters": count_parameters(task.model),
        "mmacs": macs / 1e6,
        "seed": config.seed,
        "distilled": config.distils(),
    }


def _figures(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy, macro-F1, macro AUC, per class, and the confusion matrix (rows: the truth)."""
    table = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    return {**class_figures(labels, probabilities, classes), "confusion": table.tolist()}


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(torch.from_numpy(logits).softmax(dim=1).numpy(), np.float32)


def _write_arrays(
    path: Path,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    files: list[str],
) -> None:
    """All or nothing, as all files of a run."""
    content = BytesIO()
    np.savez_compressed(
        content, probabilities=probabilities, labels=labels, files=np.asarray(files, np.str_)
    )
    write_bytes(path, content.getvalue())
