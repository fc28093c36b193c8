"""`tk train ssl`: train, and leave everything that a user needs from it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from tk.train.run.folder import RunFolder
from tk.train.run.launch import launch, speaks
from tk.train.run.loop import fit, prepare
from tk.train.ssl.config import SslConfig
from tk.train.ssl.results import write_results
from tk.train.ssl.task import SslTask


def train_ssl(config: SslConfig) -> Path:
    """Train as `config` says; a run that was begun in the folder goes on.

    Returns:
        the best checkpoint.

    Raises:
        TkError: data or options that cannot be used.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    best = launch(train_in_process, config)
    if speaks():
        print(f"trained; best weights in {best}", file=sys.stderr)
    return best


def train_in_process(config: SslConfig) -> Path:
    """Train in this process, which may be one of several."""
    folder = RunFolder(config.out, config.file_names())
    if folder.last.exists() and not (config.resume or config.overwrite):
        config = config.model_copy(update={"resume": "last"})
    prepare(config)
    task = SslTask(config)
    return fit(task, task.plan, partial(write_results, task, folder))
