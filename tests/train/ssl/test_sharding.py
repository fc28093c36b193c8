"""`--shard`: two processes that divide a training give what one gives, within rounding."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.run.test_fit import same
from tests.train.ssl.runs import config, events_of, steps_of, write_digits

from tk.runtime.errors import TkError
from tk.runtime.files import read_json, write_json
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.launch import launch
from tk.train.ssl.backbone.export import load_dinov2_backbone
from tk.train.ssl.config import SslConfig
from tk.train.ssl.task import SslTask
from tk.train.ssl.train import train_in_process, train_ssl

SAME = ("loss", "dino_loss", "ibot_loss", "teacher_entropy", "lr", "grad_norm")
WEIGHTS = ("student", "centerings", "teacher_heads")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """97 pictures: the two processes have unequal shares to measure."""
    return write_digits(tmp_path_factory.mktemp("digits"), 97)


def options(digits: Path, out: Path, **changes: Any) -> SslConfig:
    """Two epochs of 6 steps with everything that touches parameters one by one."""
    values: dict[str, Any] = dict(
        algorithm="ibot", head_norm="none", epochs=2, adam_eps=1e-8, accumulate=2,
        freeze_blocks=1, freeze_last_layer_epochs=0.5, layer_decay=0.9, norm_last_layer=False,
        export_backbone=out / "backbone.pt",
    )  # fmt: skip
    return config(digits, out, **(values | changes))


def train_and_note_sizes(settings: SslConfig) -> Path:
    """Train; write how many numbers of the blocks this process holds, and how many there are."""
    begin = SslTask.begin

    def note(self: SslTask, device: torch.device) -> None:
        sizes = {}
        for name, network in (("student", self.student), ("teacher", self.teacher)):
            blocks: list[Any] = list(network.backbone.vit.blocks.parameters())
            sizes[name] = [
                sum(p.to_local().numel() for p in blocks),
                sum(p.numel() for p in blocks),
            ]
        write_json(settings.out.parent / f"sizes{torch.distributed.get_rank()}.json", sizes)
        begin(self, device)

    SslTask.begin = note  # type: ignore[method-assign]  # this process ends with the run
    return train_in_process(settings)


@pytest.fixture(scope="module")
def sharded(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> SslConfig:
    settings = options(digits, tmp_path_factory.mktemp("sharded") / "run", shard=True, gpus=2)
    launch(train_and_note_sizes, settings)
    return settings


def assert_near(first: SslConfig, second: SslConfig) -> None:
    """Equal within the rounding of other orders of summation."""
    states = [load_checkpoint(run.out / "checkpoint_last.pt") for run in (first, second)]
    for part in WEIGHTS:
        own, other = (state["others"][part] for state in states)
        assert list(own) == list(other)
        for name, value in own.items():
            assert torch.allclose(value, other[name], rtol=1e-3, atol=2e-4), name
    moments = [state["optimizer"]["state"] for state in states]
    assert list(moments[0]) == list(moments[1])
    for place, entry in moments[0].items():
        for name, value in entry.items():
            assert torch.allclose(value, moments[1][place][name], rtol=1e-2, atol=2e-4), name
    for one, two in zip(steps_of(first), steps_of(second), strict=True):
        for name in SAME:
            assert one[name] == pytest.approx(two[name], rel=2e-3), name


def test_shard__two_processes_equal_one(digits: Path, sharded: SslConfig, tmp_path: Path) -> None:
    one = options(digits, tmp_path / "one")
    train_ssl(one)
    assert_near(one, sharded)
    figures = [events_of(run, "eval")[-1]["rank_me"] for run in (one, sharded)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-2)


def test_shard__export_loads(sharded: SslConfig) -> None:
    vit = load_dinov2_backbone(f"file::{sharded.export_backbone}:slt_vitsmall_patch16")
    best = load_checkpoint(sharded.out / "checkpoint_best.pt")["model"]
    assert all(torch.equal(value, best[f"vit.{name}"]) for name, value in vit.state_dict().items())


def stopped(settings: SslConfig) -> Path:
    """Train, and ask for a stop after 4 steps."""
    after_step = SslTask.after_step

    def stop(self: SslTask, step: int) -> None:
        after_step(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    SslTask.after_step = stop  # type: ignore[method-assign]  # this process ends with the run
    return train_in_process(settings)


@pytest.fixture(scope="module")
def interrupted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(KeyboardInterrupt):
        launch(stopped, options(digits, out, shard=True, gpus=2))
    assert load_checkpoint(out / "checkpoint_interrupt.pt")["step"] == 4
    return out


def test_shard__a_stopped_run_goes_on_to_the_bit(
    digits: Path, sharded: SslConfig, interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    settings = options(digits, tmp_path / "run", shard=True, gpus=2)
    train_ssl(settings)
    states = [load_checkpoint(run.out / "checkpoint_last.pt") for run in (sharded, settings)]
    for key in ("model", "others", "optimizer", "rng", "best", "extra", "step"):
        assert same(states[0][key], states[1][key]), key


def test_shard__a_stopped_run_goes_on_in_one_process(
    digits: Path, sharded: SslConfig, interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    settings = options(digits, tmp_path / "run")
    train_ssl(settings)
    assert_near(sharded, settings)


def test_shard__a_process_holds_half(sharded: SslConfig) -> None:
    for number in range(2):
        for held, there_are in read_json(sharded.out.parent / f"sizes{number}.json").values():
            assert held == there_are / 2 > 0


def test_shard__one_process_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(TkError, match="--shard divides"):
        train_ssl(options(digits, tmp_path / "run", shard=True))


@pytest.mark.parametrize("changes", [{"compile": True}, {"ema_decay": 0.9}])
def test_shard__what_it_does_not_go_with_is_refused(
    digits: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="--shard does not go together"):
        options(digits, tmp_path / "run", shard=True, gpus=2, **changes)
