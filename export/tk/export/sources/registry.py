"""What `tk export` can read: task of a checkpoint -> module with `open_source(path, state)`."""

from __future__ import annotations

import importlib
from pathlib import Path

from tk.export.model import ExportModel
from tk.runtime.errors import TkError
from tk.train.run.checkpoint import load_checkpoint

SOURCES: dict[str, str] = {
    "detector": "tk.export.sources.detector",
    "segmenter": "tk.export.sources.segmenter",
    "embedder": "tk.export.sources.embedder",
}


def open_source(source: Path, max_batch: int) -> ExportModel:
    """Open a checkpoint, or the best one of a run folder.

    Args:
        source: a checkpoint that `tk train` wrote, or its run folder.
        max_batch: largest number of pictures per call that will be proved.

    Raises:
        TkError: nothing there, not a checkpoint, or a task that cannot be exported.
    """
    if source.is_dir():
        names = ("checkpoint_best.pth", "checkpoint_last.pth")
        found = [source / name for name in names if (source / name).is_file()]
        if not found:
            raise TkError(
                f"{source} holds no checkpoint",
                expected=" or ".join(names),
                fix="tk train detector|segmenter|embedder --out RUN …",
            )
        source = found[0]
    task = str(load_checkpoint(source)["task"])
    if task not in SOURCES:
        raise TkError(f"cannot export a checkpoint of task {task!r}", expected=", ".join(SOURCES))
    model: ExportModel = importlib.import_module(SOURCES[task]).open_source(source, max_batch)
    return model
