"""`tk train student`: train, and leave what a table and an export need."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from tk.train.run.folder import RunFolder
from tk.train.run.launch import launch, speaks
from tk.train.run.loop import fit, prepare
from tk.train.student.config import StudentConfig
from tk.train.student.results import write_results
from tk.train.student.task import StudentTask


def train_student(config: StudentConfig) -> Path:
    """Train as `config` says; a run that was begun in the folder goes on.

    Returns:
        the best checkpoint, an image classifier (`tk.train.classifier.checkpoint`); beside it lie
        `results.json`, `predictions.npz`, `splits.json`, metrics and log.

    Raises:
        TkError: data or options that cannot be used.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    best = launch(train_in_process, config)
    if speaks():
        print(f"trained; best weights in {best}", file=sys.stderr)
    return best


def train_in_process(config: StudentConfig) -> Path:
    """Train in this process, which may be one of several."""
    folder = RunFolder(config.out)
    if folder.last.exists() and not (config.resume or config.overwrite):
        config = config.model_copy(update={"resume": "last"})
    prepare(config)
    task = StudentTask(config)
    return fit(task, config.in_steps(len(task)), partial(write_results, task, folder))
