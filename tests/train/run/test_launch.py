"""Several processes on the CPU (gloo): the same run, the same way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.run.test_fit import config, same, steps_of
from tests.train.run.test_modes import Plain
from torch import Tensor

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.config import TrainConfig
from tk.train.run.distributed import gather_shares, rank, share, world
from tk.train.run.launch import launch
from tk.train.run.loop import fit, prepare

ROOT = Path(__file__).parents[3]


class Noisy(Plain):
    """Draws global random numbers, as dropout does: each process has its own."""

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        x, y = batch
        return super().loss((x + 0.1 * torch.randn_like(x), y), step)


class Stopped(Noisy):
    """The second process is told to stop in the middle."""

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        if step == 5 and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch, step)


class Broken(Plain):
    """The second process fails."""

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        if step == 2 and rank() == 1:
            raise TkError("the second process found a broken file")
        return super().loss(batch, step)


def plain(settings: TrainConfig) -> Path:
    prepare(settings)
    return fit(Plain(), settings)


def noisy(settings: TrainConfig) -> Path:
    prepare(settings)
    return fit(Noisy(), settings)


def stopped(settings: TrainConfig) -> Path:
    prepare(settings)
    return fit(Stopped(), settings)


def broken(settings: TrainConfig) -> Path:
    prepare(settings)
    return fit(Broken(), settings)


def gathered(settings: TrainConfig) -> Path:
    rows = torch.arange(7 * 3).reshape(7, 3).numpy()
    found = gather_shares(rows[list(share(7))], 7)
    if world() != 2 or (found != rows).any():
        raise TkError(f"rows in another order: {found.tolist()}")
    return settings.out


def last(out: Path) -> dict[str, Any]:
    return load_checkpoint(out / "checkpoint_last.pth")


def test_launch__two_processes_equal_one(tmp_path: Path) -> None:
    launch(plain, config(tmp_path / "one"))
    launch(plain, config(tmp_path / "two", gpus=2, accumulate=2))
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], rtol=0, atol=2e-6), name
    records = [steps_of(tmp_path / name) for name in ("one", "two")]
    for key in ("loss", "grad_norm", "lr", "epoch"):
        values = [[record[key] for record in run] for run in records]
        assert values[0] == pytest.approx(values[1], rel=1e-5), key
    assert one["best"]["step"] == two["best"]["step"]


def test_launch__resume_of_two_processes_is_exact(tmp_path: Path) -> None:
    launch(noisy, config(tmp_path / "one", gpus=2))
    settings = config(tmp_path / "two", gpus=2)
    with pytest.raises(KeyboardInterrupt):
        launch(stopped, settings)
    assert last(tmp_path / "two")["step"] == 6
    launch(noisy, settings.model_copy(update={"resume": "last"}))
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert len(one["rng"]) == 2
    assert not same(one["rng"][0]["torch"], one["rng"][1]["torch"])
    for key in ("model", "optimizer", "rng", "best"):
        assert same(one[key], two[key]), key


def test_launch__error_of_one_process_ends_all(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TkError, match="the second process found a broken file"):
        launch(broken, config(tmp_path, gpus=2))
    assert time.monotonic() - started < 60


def test_launch__rows_come_back_in_order(tmp_path: Path) -> None:
    assert launch(gathered, config(tmp_path, gpus=2)) == tmp_path


@pytest.mark.skipif(torch.cuda.device_count() >= 64, reason="this machine has them")
def test_launch__missing_gpus(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="--gpus 64 needs as many GPUs"):
        launch(plain, config(tmp_path, gpus=64, device="auto"))


def test_launch__torchrun(tmp_path: Path) -> None:
    launch(plain, config(tmp_path / "one"))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from pathlib import Path
            from tests.train.run.test_fit import config
            from tests.train.run.test_launch import plain
            from tk.train.run.launch import launch
            launch(plain, config(Path({str(tmp_path / "two")!r})))
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], rtol=0, atol=2e-6), name
