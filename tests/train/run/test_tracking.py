from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.run.clearml_server import clearml_server

from tk.train.run.clearml import CLOSE_SECONDS, ClearmlProcess, curves, single_values
from tk.train.run.config import TrainConfig
from tk.train.run.tracker import GuardedTracker, Outcome, Tracker
from tk.train.run.tracking import NoTracker, open_tracker

STEP = {"step": 3, "epoch": 0, "lr": 0.1, "loss": 2.0, "accuracy": None, "grad_norm": 1.0}
PER_CLASS = {
    "молоток": {"precision": 0.5, "recall": None, "f1": 0.25, "auc": float("nan"), "support": 4},
    "b": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "auc": 1.0, "support": 2},
}
EVAL = {"event": "eval", "step": 3, "epoch": 1, "train_loss": 0.5, "val_loss": 0.75}
EVAL |= {"val_macro_auc": float("nan"), "val_per_class": PER_CLASS}
TEST = {
    "event": "test",
    "step": 3,
    "weights_of_step": 2,
    "test_accuracy": 0.9,
    "test_map_at_r": 0.5,
}


def config(out: Path, **values: Any) -> TrainConfig:
    names = {"clearml_project": "Проект", "clearml_task_name": "Инструменты"}
    return TrainConfig(data=out, out=out / "run", use_clearml=True, **{**names, **values})


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No ClearML settings of this machine, and everything it writes under tmp_path."""
    for name in list(os.environ):
        if name.startswith(("CLEARML_", "TRAINS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "none.conf"))
    return monkeypatch


def connect(environment: pytest.MonkeyPatch, address: str) -> None:
    for name in ("API", "WEB", "FILES"):
        environment.setenv(f"CLEARML_{name}_HOST", address)
    environment.setenv("CLEARML_API_ACCESS_KEY", "a")
    environment.setenv("CLEARML_API_SECRET_KEY", "b")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (STEP, {("lr", "batch", 0.1), ("loss", "batch", 2.0), ("grad_norm", "batch", 1.0)}),
        (
            EVAL,
            {
                ("loss", "train", 0.5),
                ("loss", "val", 0.75),
                ("precision per class (val)", "молоток", 0.5),
                ("f1 per class (val)", "молоток", 0.25),
                *((f"{kind} per class (val)", "b", 1.0) for kind in ("precision", "recall", "f1")),
                ("auc per class (val)", "b", 1.0),
            },
        ),
        (TEST, {("accuracy", "test", 0.9), ("map_at_r", "test", 0.5)}),
        ({"event": "best", "step": 3, "value": 0.5}, set()),
        ({"step": 1, "loss": float("inf"), "ok": True, "note": "x"}, set()),
    ],
)
def test_curves__titles_and_series(record: dict[str, Any], expected: set[Any]) -> None:
    found = [tuple(scalar) for scalar in curves(record)]
    assert set(found) == expected and len(found) == len(expected)


def test_single_values__of_test_and_best() -> None:
    figures = {"test accuracy": 0.9, "test map at r": 0.5, "test weights of step": 2.0}
    assert dict(single_values(TEST)) == figures
    best = {"event": "best", "step": 7, "value": 0.5, "metric": "val_accuracy"}
    assert dict(single_values(best)) == {"best step": 7.0, "best value": 0.5}
    assert not list(single_values(EVAL)) + list(single_values(STEP))


class Failing(Tracker):
    """Fails on the records named; counts its calls."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.calls, self.outcome = bad, 0, ""

    def record(self, record: Mapping[str, Any]) -> None:
        self.calls += 1
        if self.calls in self.bad:
            raise ConnectionError("server away")

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome
        raise OSError("still away")


@pytest.mark.parametrize(
    ("bad", "calls"), [({1, 2, 3}, 3), ({2, 3, 5, 6, 8}, 10), ({4, 5, 6}, 6), (set(), 10)]
)
def test_guarded_tracker__one_warning_and_an_end(
    bad: set[int], calls: int, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = Failing(bad)
    tracker = GuardedTracker(inner, "ClearML", limit=3)
    for _ in range(10):
        tracker.record(STEP)
    tracker.close("interrupted")
    assert inner.calls == calls and inner.outcome == "interrupted"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "the training goes on, and metrics.jsonl" in lines[0]
    assert ("server away" if bad else "still away") in lines[0]


def test_open_tracker__nothing_asked_nothing_done(tmp_path: Path) -> None:
    tracker = open_tracker(TrainConfig(data=tmp_path, out=tmp_path / "run"), "toy")
    assert isinstance(tracker, NoTracker) and not (tmp_path / "run").exists()
    tracker.record(STEP)
    tracker.close("finished")


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
    )


def test_open_tracker__package_absent(tmp_path: Path) -> None:
    done = run(
        """
import sys
from pathlib import Path
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "clearml":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from tk.runtime.errors import EnvironmentLacks
from tk.train.run.config import TrainConfig
from tk.train.run.tracking import open_tracker
try:
    open_tracker(TrainConfig(data=Path("d"), out=Path(sys.argv[1]), use_clearml=True), "toy")
except EnvironmentLacks as error:
    print(error.exit_code, error)
""",
        tmp_path / "run",
    )
    assert done.stdout.startswith("3 ") and "tk-vision[clearml]" in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()


def process_state() -> list[Any]:
    """What ClearML changes in a process that imports and starts it."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    generators = [random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()]
    return [*handlers, sys.exit, sys.excepthook, os.fork, *generators]


def test_open_tracker__offline_archive_and_a_training_left_alone(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    clean.setenv("CLEARML_OFFLINE_MODE", "1")
    random.seed(5)
    np.random.seed(5)
    before = process_state()
    tracker = open_tracker(config(tmp_path), "toy")
    for record in (STEP, EVAL, TEST, {"event": "best", "step": 3, "value": 0.5}):
        tracker.record(record)
    tracker.close("finished")
    assert "clearml" not in sys.modules
    assert process_state() == before
    (archive,) = (tmp_path / "cache" / "offline").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        task = json.loads(file.read("task.json"))
        lines = file.read("metrics.jsonl").decode().splitlines()
        log = file.read("log.jsonl").decode()
    assert (task["project_name"], task["name"]) == ("Проект", "Инструменты")
    assert task["hyperparams"]["options"]["clearml_project"]["value"] == "Проект"
    assert "the training finished" in json.loads(log.splitlines()[-1])[-1]["msg"]
    events = [event for line in lines for event in json.loads(line)]
    points = {(e["metric"], e["variant"], e["iter"], e["value"]) for e in events}
    curve_points = {(*scalar[:2], 3, scalar[2]) for r in (STEP, EVAL, TEST) for scalar in curves(r)}
    assert curve_points < points and ("f1 per class (val)", "молоток", 3, 0.25) in points
    single = {(variant, value) for metric, variant, _, value in points if metric == "Summary"}
    assert single == {*single_values(TEST), ("best step", 3.0), ("best value", 0.5)}


TRAINING = """
import sys, time
from pathlib import Path
from tk.train.run.config import TrainConfig
from tk.train.run.stop import StopRequest
from tk.train.run.tracking import open_tracker
out = Path(sys.argv[1])
tracker = open_tracker(TrainConfig(data=out, out=out, use_clearml=True), "toy")
outcome = "failed"
try:
    with StopRequest() as stop:
        for step in range(10_000):
            tracker.record({"step": step + 1, "loss": 1.0})
            print(step, flush=True)
            time.sleep(0.01)
            if stop.requested:
                print("checkpoint written", flush=True)
                outcome = "interrupted"
                raise KeyboardInterrupt
finally:
    tracker.close(outcome)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "tasks.stopped"), (signal.SIGKILL, "tasks.failed")]
)
def test_clearml__status_of_a_training_that_a_signal_ended(
    tmp_path: Path, clean: pytest.MonkeyPatch, number: signal.Signals, status: str
) -> None:
    with clearml_server() as (address, calls):
        connect(clean, address)
        training = subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        wait_for("tasks.started", calls)
        os.killpg(training.pid, number)  # as a terminal does: all processes of the group
        output, _ = training.communicate()
        wait_for(status, calls)
    assert ("checkpoint written" in output) == (number == signal.SIGINT)
    ends = [name for name, _ in calls if name in ("tasks.stopped", "tasks.failed")]
    assert ends == [status] and "tasks.completed" not in dict(calls)
    batches = [body for name, body in calls if name == "events.add_batch"]
    last = int(output.split("checkpoint")[0].split()[-1]) + 1
    assert any(f'"iter": {last}' in body for body in batches)  # nothing that was recorded is lost


def wait_for(name: str, calls: list[tuple[str, str]]) -> None:
    end = time.monotonic() + 60
    while name not in dict(calls):
        assert time.monotonic() < end, [call for call, _ in calls]
        time.sleep(0.05)


def test_clearml__not_configured_is_one_warning(
    tmp_path: Path, clean: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = open_tracker(config(tmp_path, clearml_task_name=""), "toy")
    for _ in range(2000):  # more than a pipe holds
        tracker.record(STEP)
    tracker.close("finished")
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "MissingConfigError" in warnings[0]


def test_clearml__lost_process_is_one_warning(
    tmp_path: Path, clean: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clean.setenv("CLEARML_OFFLINE_MODE", "1")
    tracker = open_tracker(config(tmp_path), "toy")
    assert isinstance(tracker, GuardedTracker) and isinstance(tracker.tracker, ClearmlProcess)
    tracker.tracker.process.kill()
    tracker.tracker.process.wait()
    start = time.monotonic()
    for _ in range(10):
        tracker.record(STEP)
    tracker.close("finished")
    assert time.monotonic() - start < 5 < CLOSE_SECONDS
    assert capfd.readouterr().err.count("warning: ClearML failed (BrokenPipeError") == 1
