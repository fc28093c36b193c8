"""ClearML in a process of its own, fed with the lines of metrics.jsonl.

Inside the training its package would seed the random generators, take over the signals, `sys.exit`
and `sys.excepthook`, act in every forked worker, and wait for hours for a server that is away. So
the training writes lines into a pipe, and `serve` at its other end talks to ClearML. A training
that is killed closes the pipe, and its task is marked as failed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple, get_args

from tk.runtime.errors import EnvironmentLacks
from tk.train.run.tracker import GuardedTracker, Outcome, Tracker, failure_text, to_stderr

CLOSE_SECONDS = 60.0
"""How long figures that are left may take to reach the server at the end."""

SPLITS = ("train", "val", "test")
PER_CLASS = ("precision", "recall", "f1", "auc")
FRAMEWORKS = (
    "detect_repository hydra scikit joblib matplotlib tensorflow tensorboard tfdefines pytorch "
    "megengine xgboost catboost fastai lightgbm gradio"
).split()


class Scalar(NamedTuple):
    """A point of a curve: title of the plot, name of the curve, value."""

    title: str
    series: str
    value: float


def check_installed() -> None:
    """Refuse a machine without the package.

    Raises:
        EnvironmentLacks: names the extra that has it.
    """
    try:
        found = importlib.util.find_spec("clearml") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise EnvironmentLacks(
            "--use_clearml needs the package clearml",
            fix="pip install 'tk-vision[clearml]', or train without --use_clearml",
        )


class ClearmlProcess(Tracker):
    """The training's end of the pipe.

    Args:
        project, task: names in ClearML.
        tag: a tag of the task.
        options: resolved configuration, shown as the task's options.
        log: file for what ClearML prints.

    Raises:
        OSError: no process or no log file can be made.
    """

    def __init__(
        self, *, project: str, task: str, tag: str, options: Mapping[str, Any], log: Path
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # The child finds the packages where this process found them, not in its working folder.
        start = "import os, sys; sys.path = sys.argv.pop().split(os.pathsep)"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{start}; from tk.train.run.clearml import serve; serve()",
                os.pathsep.join(sys.path),
            ],
            stdin=subprocess.PIPE,
            env=_own_environment(),
            start_new_session=True,  # a terminal sends Ctrl-C to every process of the session
        )
        names = {"project": project, "task": task, "tag": tag, "log": str(log)}
        self._write({**names, "options": options})

    def record(self, record: Mapping[str, Any]) -> None:
        """Send a record; takes microseconds, since the other end always reads.

        Raises:
            OSError: the process is gone.
        """
        self._write(record)

    def close(self, outcome: Outcome) -> None:
        """Send the rest and wait for the process, a minute at most.

        Raises:
            RuntimeError: figures were lost.
        """
        with suppress(OSError):
            self._write({"close": outcome})
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            to_stderr(
                f"waiting for ClearML to take the last figures, at most {CLOSE_SECONDS:.0f} s"
            )
            try:
                self.process.wait(timeout=CLOSE_SECONDS + 5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.process.wait():
            raise RuntimeError(f"not everything was sent, see {self.log}")

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message, default=float).encode() + b"\n")
        self.process.stdin.flush()


def _own_environment() -> dict[str, str]:
    """Without the ranks of torchrun: ClearML would look for a master of this process."""
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
    return {name: value for name, value in os.environ.items() if name not in ranks}


def serve() -> None:
    """Read the pipe on standard input until it ends, and tell ClearML."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines: Queue[bytes] = Queue()
    # A thread that does nothing else: the training never waits for ClearML.
    threading.Thread(target=_read_all, args=(lines,), daemon=True).start()
    first = lines.get()
    if not first:
        return
    start = json.loads(first)
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    with open(start["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    def say(text: str) -> None:
        with suppress(OSError):
            print(text, file=terminal, flush=True)

    try:
        tracker = ClearmlTask(start["project"], start["task"], start["tag"], start["options"])
    except Exception as error:  # no configuration, no server, wrong keys, ...
        say(failure_text("ClearML", error))
        while lines.get():
            pass
        return
    say(f"ClearML: {tracker.address}")
    guarded = GuardedTracker(tracker, "ClearML", warn=say)
    outcome: Outcome = "failed"  # unless the training says otherwise before the pipe ends
    for message in iter(lambda: lines.get(), b""):
        record = json.loads(message)
        if record.get("close") in get_args(Outcome):
            outcome = record["close"]
            break
        guarded.record(record)
    guarded.close(outcome)


def _read_all(lines: Queue[bytes]) -> None:
    """Fill the queue; the end of the pipe is b"" and starts the clock for what is left to do."""
    for line in sys.stdin.buffer:
        lines.put(line)
    lines.put(b"")
    timer = threading.Timer(CLOSE_SECONDS, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


class ClearmlTask(Tracker):
    """A ClearML task in this process."""

    def __init__(self, project: str, task: str, tag: str, options: Mapping[str, Any]) -> None:
        from clearml import Task

        # One process more to talk to the server is one too many: closing takes 10 s instead of 0.1.
        kind: Any = Task
        kind._report_subprocess_enabled = False
        self.task: Any = kind.init(
            project_name=project,
            task_name=task,
            tags=[tag],
            reuse_last_task_id=False,
            auto_connect_frameworks=dict.fromkeys(FRAMEWORKS, False),
            auto_connect_arg_parser=False,
            auto_resource_monitoring=False,
            auto_connect_streams=False,
        )
        self.task.connect(dict(options), name="options")
        self.logger = self.task.get_logger()
        offline = self.task.get_offline_mode_folder()
        self.address = f"{offline}.zip" if offline else self.task.get_output_log_web_page()

    def record(self, record: Mapping[str, Any]) -> None:
        """Report the curves of a record, and single values of the test and of the best step."""
        step = int(record["step"])
        for title, series, value in curves(record):
            self.logger.report_scalar(title, series, value, step)
        for name, value in single_values(record):
            self.logger.report_single_value(name, value)

    def close(self, outcome: Outcome) -> None:
        """Send everything and set the status: completed, stopped or failed."""
        self.logger.report_text(f"the training {_SENTENCES[outcome]}", print_console=False)
        self.task.flush(wait_for_uploads=True)
        # close() sets the status by what happened to the process; mark_stopped() and mark_failed()
        # before it would be overwritten with `completed`.
        if outcome == "interrupted":
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        elif outcome == "failed":
            sys.excepthook(RuntimeError, RuntimeError("the training failed"), None)
        self.task.close()


_SENTENCES: dict[Outcome, str] = {
    "finished": "finished",
    "interrupted": "was interrupted",
    "failed": "failed",
}


def curves(record: Mapping[str, Any]) -> Iterator[Scalar]:
    """Points of a record: `val_loss` is title `loss`, series `val`; `loss` of a step is `batch`.

    Figures per class have the class as their series. What is no finite number is left out.
    """
    if record.get("event") == "best":
        return
    for key, value in record.items():
        split, _, name = key.partition("_")
        if split not in SPLITS or not name:
            if "event" in record:  # facts of the event (epoch, weights_of_step), no curves
                continue
            split, name = "batch", key
        if name == "per_class" and isinstance(value, Mapping):
            for kind in PER_CLASS:
                title = f"{kind} per class ({split})"
                for label, figures in value.items():
                    if _is_number(figures.get(kind)):
                        yield Scalar(title, label, float(figures[kind]))
        elif name not in ("step", "epoch") and _is_number(value):
            yield Scalar(name, split, float(value))


def single_values(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Named numbers of the whole run: of its test, and of its best step so far."""
    event = record.get("event")
    if event not in ("test", "best"):
        return
    for key, value in record.items():
        if not _is_number(value) or (event == "test" and key in ("step", "epoch")):
            continue
        name = key if key.startswith(f"{event}_") else f"{event}_{key}"
        yield name.replace("_", " "), float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
