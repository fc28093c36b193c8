"""A run that was killed ends as if it had not been."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.embedder.test_train import write_digits
from tests.train.run.test_fit import same

from tk.train.run.checkpoint import load_checkpoint

COMMAND = [
    *(sys.executable, "-m", "tk.cli", "train", "embedder", "--model_id", "test_resnet"),
    *("--no-pretrained", "--img_size", "32", "--emb_dim", "16", "--batch", "16", "--epochs", "4"),
    *("--threads", "1", "--device", "cpu", "--min_per_class", "3", "--ema_decay", "0.9"),
    *("--aug", "light", "--save_every", "2"),
]
KEYS = ("model", "others", "average", "optimizer", "rng", "best", "extra", "step")


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [*COMMAND, "--data_root", str(root), "--out_dir", str(out), *more]


def finish(root: Path, out: Path, *more: str) -> None:
    done = subprocess.run(
        command(root, out, *more), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "trained; best weights in" in done.stderr


def kill_at(root: Path, out: Path, lines: int, number: int, *more: str) -> int:
    """Start a run and send it a signal once metrics.jsonl has so many lines."""
    process = subprocess.Popen(
        command(root, out, *more), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(120)


def assert_equal_runs(one: Path, other: Path) -> None:
    states = [load_checkpoint(out / "checkpoint_last.pth") for out in (one, other)]
    for key in KEYS:
        assert same(states[0][key], states[1][key]), key
    lines = [(out / "metrics.jsonl").read_text("utf-8").splitlines() for out in (one, other)]
    assert lines[0] == lines[1]
    for name in ("prototypes.npz", "splits.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 150)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed: 28 steps, 4 epochs of 7."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(digits, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "number", "workers"),
    [
        (3, signal.SIGKILL, "0"),  # in the first epoch: nothing was saved yet
        (17, signal.SIGKILL, "2"),  # in the second or third
        (12, signal.SIGINT, "2"),
        (20, signal.SIGTERM, "0"),
    ],
)
def test_resume__a_killed_run_ends_as_if_nothing_had_happened(
    digits: Path, whole: Path, tmp_path: Path, lines: int, number: int, workers: str
) -> None:
    out = tmp_path / "run"
    code = kill_at(digits, out, lines, number, "--workers", workers)
    assert code == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        saved = [load_checkpoint(out / f"checkpoint_{name}.pth") for name in ("last", "interrupt")]
        assert all(same(saved[0][key], saved[1][key]) for key in KEYS)
        assert not (out / "prototypes.npz").exists()
    finish(digits, out, "--workers", workers)
    assert_equal_runs(whole, out)


def test_resume__from_a_kept_checkpoint(digits: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    finish(digits, out, "--resume", str(out / "checkpoint_ep002.pth"))
    assert sorted(path.name for path in out.glob("checkpoint_ep*")) == [
        "checkpoint_ep002.pth",
        "checkpoint_ep004.pth",
    ]
    assert_equal_runs(whole, out)


def change_class_order(root: Path, out: Path) -> None:
    (root / "цифра 0").rename(root / "я, бывший ноль")


def add_a_picture(root: Path, out: Path) -> None:
    crop = next((root / "цифра 3" / "cropped").iterdir())
    (crop.parent / "999.png").write_bytes(crop.read_bytes())


def put_another_run_there(root: Path, out: Path) -> None:
    (out.parent / "elsewhere").mkdir()
    (out / "checkpoint_last.pth").rename(out.parent / "elsewhere" / "other.pth")


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (change_class_order, (), "the data changed since this run began"),
        (add_a_picture, (), "crops and splits"),
        (lambda root, out: None, ("--val_split", "0.4"), "val_split=0.2"),
        (put_another_run_there, ("--resume", "../elsewhere/other.pth"), "holds another run"),
    ],
)
def test_resume__what_does_not_fit_is_refused_and_nothing_is_touched(
    whole: Path, tmp_path: Path, change: Any, more: tuple[str, ...], message: str
) -> None:
    root, out = write_digits(tmp_path / "digits", 150), tmp_path / "run"
    shutil.copytree(whole, out)
    change(root, out)
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    more = tuple(word.replace("../", f"{tmp_path}/") for word in more)
    done = subprocess.run(command(root, out, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    after = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert {k: v for k, v in after.items() if k.name != "train.log"} == {
        k: v for k, v in before.items() if k.name != "train.log"
    }


def test_resume__data_at_another_path_and_other_prototypes(whole: Path, tmp_path: Path) -> None:
    root, out = write_digits(tmp_path / "digits", 150), tmp_path / "run"
    shutil.copytree(whole, out)
    finish(root, out, "--sub_prototypes", "2", "--cache_gb", "1")
    with np.load(out / "prototypes.npz", allow_pickle=False) as file:
        assert {"sub_centroids", "sub_labels"} <= set(file)


def test_resume__signal_to_the_whole_group_with_workers(
    digits: Path, whole: Path, tmp_path: Path
) -> None:
    """Batch systems signal workers too; the checkpoint must be written all the same."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(digits, out, "--workers", "2"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_bytes()) < 900:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert (out / "checkpoint_interrupt.pth").exists() and "Traceback" not in text
    finish(digits, out)
    assert_equal_runs(whole, out)


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_resume__damaged_checkpoint_is_named(
    digits: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    data = (whole / "checkpoint_last.pth").read_bytes()
    bad = tmp_path / "bad.pth"
    bad.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"PK\x03\x04 not mine")
    done = subprocess.run(
        command(digits, tmp_path / "run", "--resume", str(bad)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{bad} cannot be read as a checkpoint" in done.stderr
    assert "checkpoint_best.pth" in done.stderr and "Traceback" not in done.stderr


def test_resume__full_disk_keeps_the_previous_checkpoint(
    digits: Path, whole: Path, tmp_path: Path
) -> None:
    """No file may grow beyond a bound, which is what a full disk looks like to `write`."""
    out = tmp_path / "run"
    kill_at(digits, out, 10, signal.SIGINT)
    before = (out / "checkpoint_last.pth").read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))

    done = subprocess.run(
        command(digits, out), capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert done.returncode == 3, done.stderr
    assert "could not be written" in done.stderr or "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "checkpoint_last.pth").read_bytes() == before
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    finish(digits, out)
    assert_equal_runs(whole, out)


def test_metrics__json_is_valid_without_nan(whole: Path) -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(text)

    for line in (whole / "metrics.jsonl").read_text("utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
