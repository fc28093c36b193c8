"""What a task may change of a step, and names of the files of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.run.test_fit import config
from tests.train.run.test_modes import Plain

from tk.runtime.errors import TkError
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.config import TrainConfig
from tk.train.run.folder import FileNames, RunFolder
from tk.train.run.loop import fit, prepare

NAMES = FileNames("last.pt", "best.pt", "history.jsonl", "params.json")


class Named(TrainConfig):
    def file_names(self) -> FileNames:
        return NAMES


class Hooked(Plain):
    """The first layer rests for two steps; weight decay grows; files are counted."""

    eps = 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.first = [self.model.get_parameter(f"0.{name}") for name in ("weight", "bias")]
        self.before = [parameter.detach().clone() for parameter in self.first]
        self.rested: list[bool] = []
        self.files: list[tuple[str, int]] = []

    def learning_rate(self, step: int, config: TrainConfig) -> float:
        return config.lr / (1 + step)

    def before_update(self, step: int, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            group["weight_decay"] = float(step)
        if step < 2:
            for parameter in self.first:
                parameter.grad = None

    def after_step(self, step: int) -> None:
        pairs = zip(self.first, self.before, strict=True)
        self.rested.append(all(torch.equal(now, before) for now, before in pairs))

    def saved(self, path: Path, done: int) -> None:
        self.files.append((path.name, done))


def run(out: Path, **changes: Any) -> tuple[Hooked, Named]:
    settings = Named(**config(out, **changes).resolved())
    prepare(settings)
    task = Hooked()
    fit(task, settings)
    return task, settings


def test_task__hooks_of_a_step(tmp_path: Path) -> None:
    task, settings = run(tmp_path, steps=4, save_every=2, eval_every=0)
    assert task.rested == [True, True, False, False]
    assert task.files == [("last.pt", 2), ("best.pt", 4), ("last.pt", 4)]
    state = load_checkpoint(tmp_path / "last.pt")
    groups = state["optimizer"]["param_groups"]
    assert {(g["weight_decay"], g["eps"]) for g in groups} == {(3.0, 1e-3)}
    assert groups[0]["lr"] == settings.lr / 4
    rates = [r["lr"] for r in RunFolder(tmp_path, NAMES).read_metrics() if "event" not in r]
    assert rates == [settings.lr / n for n in (1, 2, 3, 4)]


def test_task__dropped_gradient_neither_moves_nor_decays(tmp_path: Path) -> None:
    task, _ = run(tmp_path, steps=2, eval_every=0)
    assert task.rested == [True, True]
    assert all(math.isfinite(float(p.detach().sum())) for p in task.model.parameters())


def test_run_folder__other_names(tmp_path: Path) -> None:
    run(tmp_path, keep_every=6)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("best.pt", "checkpoint_step000006.pt", "checkpoint_step000012.pt"),
        *("history.jsonl", "last.pt", "params.json", "train.log"),
    ]
    with pytest.raises(TkError, match="holds a run already"):
        run(tmp_path)
    run(tmp_path, resume=str(tmp_path))  # a folder means its last checkpoint
    run(tmp_path, overwrite=True, steps=2, eval_every=0)
    assert sorted(path.name for path in RunFolder(tmp_path, NAMES).checkpoints()) == [
        "best.pt",
        "last.pt",
    ]


@pytest.mark.parametrize("name", ["results.json", "plots"])
def test_run_folder__results_of_something_else_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for overwrite in (False, True):
        with pytest.raises(TkError, match=f"holds {name} of something else"):
            run(tmp_path, overwrite=overwrite)
    assert (tmp_path / name).is_dir()
