from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.config import TrainConfig
from tk.train.run.folder import RunFolder
from tk.train.run.loop import fit, prepare
from tk.train.run.task import TrainTask


class Toy(TrainTask):
    """Noisy regression with dropout and batch norm, so that every kind of state matters."""

    name = "toy"
    best_metric = "score"

    def __init__(self, stop_at: int = -1, nan_at: int = -1, number: int = signal.SIGINT) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.image_spec = ImageSpec(8, 8)
        self.classes = ("a", "б")
        self.stop_at, self.nan_at, self.number = stop_at, nan_at, number
        self.average = 0.0

    def __len__(self) -> int:
        return 10

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Any:
        x = rng.normal(size=4).astype(np.float32) + index
        return x, np.float32(x.sum())

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        x, y = batch
        if step == self.stop_at:
            os.kill(os.getpid(), self.number)
        noise = float(np.random.rand() + random.random()) * 1e-3
        loss = ((self.model(x)[:, 0] - y) ** 2).mean() + noise
        return {
            "loss": loss * (float("nan") if step == self.nan_at else 1.0),
            "noise": loss * 0 + noise,
        }

    def after_step(self, step: int) -> None:
        self.average = 0.9 * self.average + 0.1 * float(
            next(self.model.parameters()).detach().sum()
        )

    def extra_state(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.average = state["average"]

    def evaluate(self) -> dict[str, float]:
        return {"score": -float(self.model(torch.ones(1, 4)).abs().sum() + torch.rand(1))}


def config(out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = dict(data=out, out=out, steps=12, batch_size=4, lr=1e-2, warmup=2)
    return TrainConfig(**(values | dict(eval_every=4, threads=1, device="cpu") | changes))


def train(settings: TrainConfig, **toy: Any) -> Path:
    prepare(settings)
    np.random.seed(1)
    random.seed(1)
    return fit(Toy(**toy), settings)


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [record for record in RunFolder(out).read_metrics() if "event" not in record]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fit__resumed_run_equals_one_run(tmp_path: Path, workers: int, number: int) -> None:
    train(config(tmp_path / "one"))
    two = config(tmp_path / "two", workers=workers)
    with pytest.raises(KeyboardInterrupt):
        train(two, stop_at=6, number=number)
    assert load_checkpoint(two.out / "checkpoint_interrupt.pth")["step"] == 7
    train(two.model_copy(update={"resume": "last"}))
    one, other = (
        load_checkpoint(tmp_path / name / "checkpoint_last.pth") for name in ("one", "two")
    )
    assert one["step"] == 12
    for key in ("model", "optimizer", "rng", "best", "extra", "epoch"):
        assert same(one[key], other[key]), key
    metrics = [RunFolder(tmp_path / name).metrics.read_bytes() for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    best = [
        load_checkpoint(tmp_path / name / "checkpoint_best.pth")["model"] for name in ("one", "two")
    ]
    assert same(*best)


def test_fit__resume_from_older_checkpoint_cuts_metrics(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    train(settings)
    whole = RunFolder(settings.out).metrics.read_bytes()
    early = settings.out / "checkpoint_best.pth"
    step = load_checkpoint(early)["step"]
    RunFolder(settings.out).append_metrics({"step": 99, "loss": float("nan")})
    train(settings.model_copy(update={"resume": str(early)}))
    assert step < 12 and RunFolder(settings.out).metrics.read_bytes() == whole


def test_fit__finished_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path / "run")
    best = train(settings)
    before = (settings.out / "checkpoint_last.pth").read_bytes()
    assert train(settings.model_copy(update={"resume": "last"})) == best
    assert "finished already" in capsys.readouterr().err
    assert (settings.out / "checkpoint_last.pth").read_bytes() == before


def test_fit__other_config_is_refused_with_differences(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    train(settings)
    with pytest.raises(TkError, match=r"expected: lr=0.01\n.*found: +lr=0.5"):
        train(settings.model_copy(update={"resume": "last", "lr": 0.5, "workers": 1}))


def test_fit__second_run_in_folder_is_refused(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", steps=1)
    train(settings)
    with pytest.raises(TkError, match="--resume last"):
        train(settings)
    train(settings.model_copy(update={"overwrite": True}))


def test_fit__nan_loss_stops(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="loss is nan at step 3"):
        train(config(tmp_path / "run"), nan_at=3)


def test_fit__toy_learns(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", steps=150, lr=0.1, eval_every=0)
    train(settings)
    losses = [record["loss"] for record in steps_of(settings.out)]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])


def test_fit__no_decay_on_vectors() -> None:
    groups = Toy().parameter_groups(0.1)
    assert {p.ndim for p in groups[0]["params"]} == {2} and groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0
