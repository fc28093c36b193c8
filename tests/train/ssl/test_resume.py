"""A pre-training that was stopped or killed ends as if it had not been, to the bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.train.run.test_fit import same
from tests.train.ssl.runs import config, write_digits

from tk.runtime.errors import TkError
from tk.train.run.checkpoint import load_checkpoint
from tk.train.ssl.config import SslConfig
from tk.train.ssl.train import train_ssl

KEYS = ("model", "others", "optimizer", "rng", "best", "extra", "step", "epoch")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 96)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> SslConfig:
    """A run that nobody disturbed: 3 epochs of 6 steps, iBOT, probes."""
    return run(digits, tmp_path_factory.mktemp("whole") / "run")


def options(digits: Path, out: Path, **changes: Any) -> SslConfig:
    values: dict[str, Any] = dict(algorithm="ibot", probe_dir=digits, koleo_weight=0.1)
    return config(digits, out, **(values | changes))


def run(digits: Path, out: Path, **changes: Any) -> SslConfig:
    settings = options(digits, out, **changes)
    train_ssl(settings)
    return settings


def assert_equal_runs(one: Path, other: Path) -> None:
    states = [load_checkpoint(out / "checkpoint_last.pt") for out in (one, other)]
    for key in KEYS:
        assert same(states[0][key], states[1][key]), key
    lines = [(out / "metrics.jsonl").read_text("utf-8").splitlines() for out in (one, other)]
    assert lines[0] == lines[1]


def test_checkpoint__holds_what_a_resume_needs(whole: SslConfig) -> None:
    state = load_checkpoint(whole.out / "checkpoint_last.pt", "ssl")
    others = state["others"]
    assert set(others) == {"teacher_heads", "student", "centerings"}
    assert state["optimizer"]["state"] and state["rng"] and state["extra"]["watch"]
    centres = [value for name, value in others["centerings"].items() if "center" in name]
    assert len(centres) == 2 and all(bool(centre.any()) for centre in centres)
    backbone = {name.removeprefix("backbone."): value for name, value in others["student"].items()}
    assert any(not same(value, backbone[name]) for name, value in state["model"].items())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [4, 12])
def test_resume__a_stopped_run_equals_one_run(
    digits: Path, whole: SslConfig, tmp_path: Path, monkeypatch: Any, step: int, workers: int
) -> None:
    """Stopped within an epoch, before any checkpoint; and at the end of one."""
    from tk.train.ssl.task import SslTask

    out = tmp_path / "run"
    after_step = SslTask.after_step

    def stop(self: SslTask, done: int) -> None:
        after_step(self, done)
        if done == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SslTask, "after_step", stop)
        run(digits, out, workers=workers)
    assert load_checkpoint(out / "checkpoint_interrupt.pt")["step"] == step
    run(digits, out, workers=2 - workers)  # the same command, and another number of workers
    assert_equal_runs(whole.out, out)


def test_resume__from_a_kept_checkpoint(digits: Path, whole: SslConfig, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "run"
    run(digits, first, keep_every=1)
    shutil.copytree(first, out)
    run(digits, out, keep_every=1, resume=str(out / "checkpoint_ep001.pt"))
    assert_equal_runs(whole.out, out)


@pytest.mark.slow
def test_resume__kill_9_and_go_on(digits: Path, whole: SslConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    file = tmp_path / "run.json"
    file.write_text(options(digits, out, workers=2).model_dump_json(exclude={"data", "warmup"}))
    command = [sys.executable, "-m", "tk.cli", "train", "ssl", "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole.out, out)


def test_resume__finished_run_does_nothing(
    digits: Path, whole: SslConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole.out / "checkpoint_last.pt").read_bytes()
    train_ssl(whole)
    assert "finished already" in capsys.readouterr().err
    assert (whole.out / "checkpoint_last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 0.5}, r"momentum=0.99\n.*momentum=0.5"),
        ({"algorithm": "dino"}, "algorithm='ibot'"),
        ({"vit_depth": 1}, "vit_depth=2"),
        ({"epochs": 4}, "epochs=3"),
        ({"probe_dir": None}, "probe"),
    ],
)
def test_resume__other_options_are_refused_with_the_differences(
    digits: Path, whole: SslConfig, changes: dict[str, Any], message: str
) -> None:
    before = (whole.out / "checkpoint_last.pt").read_bytes()
    with pytest.raises(TkError, match=message):
        run(digits, whole.out, **changes)
    assert (whole.out / "checkpoint_last.pt").read_bytes() == before


def test_resume__other_pictures_are_refused(digits: Path, whole: SslConfig, tmp_path: Path) -> None:
    other = write_digits(tmp_path / "digits", 97)
    with pytest.raises(TkError, match="the data changed"):
        run(other, whole.out, probe_dir=digits)


def test_resume__the_pictures_at_another_place(
    whole: SslConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_ssl(options(write_digits(tmp_path / "moved", 96), whole.out, experiment_notes="moved"))
    assert "finished already" in capsys.readouterr().err


def test_resume__checkpoint_of_another_training(digits: Path, tmp_path: Path) -> None:
    from tk.train.run.checkpoint import save_checkpoint

    state: dict[str, Any] = dict.fromkeys(("config", "classes", "image_spec", "crop_spec"), "")
    save_checkpoint(
        tmp_path / "other.pt", {**state, "task": "embedder", "step": 1, "epoch": 0, "model": {}}
    )
    with pytest.raises(TkError, match="another task"):
        run(digits, tmp_path / "run", resume=str(tmp_path / "other.pt"))
