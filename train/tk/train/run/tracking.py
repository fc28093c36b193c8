"""The experiment tracker that a configuration asks for."""

from __future__ import annotations

from tk.train.run.config import TrainConfig
from tk.train.run.tracker import GuardedTracker, NoTracker, Tracker, failure_text, to_stderr

__all__ = ["NoTracker", "Tracker", "check_tracker", "open_tracker"]


def check_tracker(config: TrainConfig) -> None:
    """Find out before hours of work whether the tracker's package is there.

    Raises:
        EnvironmentLacks: --use_clearml without the package.
    """
    if config.use_clearml:
        from tk.train.run.clearml import check_installed

        check_installed()


def open_tracker(config: TrainConfig, name: str) -> Tracker:
    """Open the tracker that `config` asks for; of several processes only the first should.

    Args:
        name: of the training (`embedder`), a tag of the tracked run.

    Raises:
        EnvironmentLacks: --use_clearml without the package, before anything was trained.
    """
    if not config.use_clearml:
        return NoTracker()
    check_tracker(config)
    from tk.train.run.clearml import ClearmlProcess

    try:
        tracker = ClearmlProcess(
            project=config.clearml_project,
            task=config.clearml_task_name or config.out.resolve().name,
            tag=name,
            options=config.resolved(),
            log=config.out / "clearml.log",
        )
    except OSError as error:  # no process to be had: no reason to train without figures
        to_stderr(failure_text("ClearML", error))
        return NoTracker()
    return GuardedTracker(tracker, "ClearML")
