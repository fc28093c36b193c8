"""The experiment tracker that a configuration asks for."""

from __future__ import annotations

from tk.train.run.config import TrainConfig
from tk.train.run.tracker import GuardedTracker, NoTracker, Tracker, failure_text, to_stderr

__all__ = ["NoTracker", "Tracker", "open_tracker"]


def open_tracker(config: TrainConfig, name: str) -> Tracker:
    """Open the tracker that `config` asks for; of several processes only the first should.

    Args:
        name: of the training (`embedder`), a tag of the tracked run.

    Raises:
        EnvironmentLacks: --use_clearml without the package, before anything was trained.
    """
    if not config.use_clearml:
        return NoTracker()
    from tk.train.run.clearml import ClearmlProcess, check_installed

    check_installed()
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
