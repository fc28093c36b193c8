"""The one training loop: a fixed number of optimizer steps, resumable to the bit on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from tk.runtime.progress import Progress, Silent, progress
from tk.train.run.config import TrainConfig
from tk.train.run.distributed import any_of, is_main
from tk.train.run.rng import seed_all
from tk.train.run.stop import StopRequest
from tk.train.run.task import TrainTask
from tk.train.run.trainer import Trainer

Finish = Callable[[Path, Callable[[dict[str, Any]], None]], None]
"""Called with the best checkpoint, and with what adds a line to metrics and tracker."""


def fit(task: TrainTask, config: TrainConfig, finish: Finish = lambda best, record: None) -> Path:
    """Train `task` as `config` says.

    Call `prepare(config)` before building the task, so that its weights follow the seed. With
    several processes (see `tk.train.run.launch`) all of them call this.

    Args:
        finish: measures and writes what is left to do after the last step; must do nothing if it
            was done before.

    Returns:
        the best checkpoint, or the last if there is no figure to choose by.

    Raises:
        TkError: a loss that is not finite, a run in the folder, a resume that does not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last whole step has been written to a checkpoint.
    """
    trainer = Trainer(task, config)
    start = trainer.resume() if config.resume else trainer.start()
    if start >= config.steps:
        trainer.say(f"{config.out} is finished already ({config.steps} steps): nothing to do")
        finish(trainer.result(), trainer.record)
        return trainer.result()
    task.begin(trainer.device)
    with trainer.tracked():
        _steps(trainer, start)
        finish(trainer.result(), trainer.record)
    return trainer.result()


def _steps(trainer: Trainer, start: int) -> None:
    task, config = trainer.task, trainer.config
    with StopRequest() as stop, _bar(task, config.steps - start) as bar:
        for step, batch in enumerate(trainer.batches(start), start):
            record = trainer.step(batch, step)
            done = step + 1
            last = done == config.steps
            if last or _due(done, config.eval_every):
                trainer.evaluate(done)
            bar.advance(note=f"loss {record['loss']:.4f}")
            if last or _due(done, config.save_every):
                trainer.save(trainer.folder.last, done)
            if _due(done, config.keep_every):
                trainer.save(trainer.folder.kept(task.tag(done)), done)
            if any_of(stop.requested) and not last:
                trainer.interrupted(done)
    trainer.finished(start)


def prepare(config: TrainConfig) -> None:
    """Seed the global generators and set the number of threads."""
    seed_all(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _bar(task: TrainTask, steps: int) -> AbstractContextManager[Progress]:
    return progress(f"train {task.name}", steps) if is_main() else nullcontext(Silent())
