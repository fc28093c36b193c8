"""`--device cpu --gpus 2`: two processes give what one gives, within rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.ssl.runs import config, events_of, steps_of, write_digits

from tk.runtime.errors import TkError
from tk.train.run.checkpoint import load_checkpoint
from tk.train.ssl.task import SslTask
from tk.train.ssl.train import train_ssl

SAME = ("loss", "dino_loss", "ibot_loss", "koleo_loss", "teacher_entropy", "lr", "grad_norm")


@pytest.mark.slow
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_ssl__two_processes_equal_one(tmp_path: Path, centering: str) -> None:
    root = write_digits(tmp_path / "digits", 96)
    values: dict[str, Any] = dict(
        algorithm="ibot", centering=centering, koleo_weight=0.1, head_norm="none", epochs=1,
        probe_dir=root, adam_eps=1e-8,
    )  # fmt: skip
    one, two = config(root, tmp_path / "one", **values), config(root, tmp_path / "two", **values)
    train_ssl(one)
    train_ssl(two.model_copy(update={"gpus": 2}))
    states = [load_checkpoint(run.out / "checkpoint_last.pt") for run in (one, two)]
    assert [len(state["rng"]) for state in states] == [1, 2]
    for part in ("student", "centerings", "teacher_heads"):
        first, second = (state["others"][part] for state in states)
        for name, value in first.items():
            assert torch.allclose(value, second[name], rtol=1e-3, atol=2e-4), name
    for first, second in zip(steps_of(one), steps_of(two), strict=True):
        for name in SAME:
            assert first[name] == pytest.approx(second[name], rel=2e-3), name
    figures = [events_of(run, "eval")[-1] for run in (one, two)]
    assert figures[0]["rank_me"] == pytest.approx(figures[1]["rank_me"], rel=1e-2)


def test_ssl__batch_norm_in_several_processes_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tk.train.ssl.task.world", lambda: 2)
    with pytest.raises(TkError, match="--head-norm none"):
        SslTask(config(tmp_path / "digits", tmp_path / "run"))
