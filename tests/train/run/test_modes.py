"""Accumulation, moving average, kept checkpoints: options of the loop beside the plain run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.run.test_fit import config, same, steps_of
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.run.average import Average
from tk.train.run.checkpoint import load_checkpoint, load_weights, result_weights
from tk.train.run.folder import RunFolder
from tk.train.run.loop import fit, prepare
from tk.train.run.sampling import parts
from tk.train.run.task import TrainTask


class Plain(TrainTask):
    """Regression without dropout and batch norm: the same whatever the parts of a batch."""

    name = "plain"
    best_metric = "score"

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.image_spec = ImageSpec(8, 8)

    def __len__(self) -> int:
        return 10

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Any:
        x = rng.normal(size=4).astype(np.float32) + index
        return x, np.float32(x.sum())

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": ((self.model(x)[:, 0] - y) ** 2).mean()}

    def evaluate(self) -> dict[str, Any]:
        score = -float(self.model(torch.ones(1, 4)).abs().sum())
        return {"score": score, "per_class": {"а": {"f1": None}}}


def train(out: Path, **changes: Any) -> dict[str, Any]:
    settings = config(out, **changes)
    prepare(settings)
    fit(Plain(), settings)
    return load_checkpoint(out / "checkpoint_last.pth")


def test_accumulate__same_run_in_parts(tmp_path: Path) -> None:
    one = train(tmp_path / "one")["model"]
    four = train(tmp_path / "four", accumulate=4)["model"]
    for name in one:
        assert torch.allclose(one[name], four[name], rtol=0, atol=2e-6), name
    losses = [[r["loss"] for r in steps_of(tmp_path / name)] for name in ("one", "four")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_accumulate__uneven_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TkError, match=r"divisible by 1 processes x 3 parts"):
        train(tmp_path / "run", accumulate=3)


def test_parts__every_sample_once_and_equal_sizes() -> None:
    batch = [(0, i) for i in range(24)]
    found = [list(parts(batch, 3, rank, 2)) for rank in range(2)]
    assert {len(part) for rank in found for part in rank} == {4}
    assert sorted(place for rank in found for part in rank for place in part) == batch


def test_average__closed_form() -> None:
    module = nn.Linear(2, 1, bias=False)
    average = Average(module, decay=0.3)
    expected = module.weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            module.weight += step
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert torch.allclose(average.values["weight"], expected)
    own = module.weight.detach().clone()
    with average.applied():
        assert torch.allclose(module.weight, expected)
    assert torch.equal(module.weight, own)


def test_average__leaves_frozen_weights_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    assert set(Average(module, 0.9).values) == {"1.weight", "1.bias"}


def test_average__is_what_results_use_and_survives_a_resume(tmp_path: Path) -> None:
    whole = train(tmp_path / "one", ema_decay=0.9, keep_every=5)
    assert set(whole["average"]) == {f"model.{name}" for name in whole["model"]}
    assert not same(result_weights(whole, "model"), whole["model"])
    net = Plain().model
    load_weights(net, whole, tmp_path)
    assert torch.equal(net.state_dict()["0.weight"], whole["average"]["model.0.weight"])
    score = -float(net(torch.ones(1, 4)).abs().sum())
    last = [r for r in RunFolder(tmp_path / "one").read_metrics() if r.get("event") == "eval"][-1]
    assert last["score"] == pytest.approx(score, rel=1e-6)
    early = tmp_path / "one" / "checkpoint_step000005.pth"
    again = train(tmp_path / "one", ema_decay=0.9, keep_every=5, resume=str(early))
    for key in ("model", "average", "optimizer", "best"):
        assert same(whole[key], again[key]), key


def test_start__a_folder_without_a_checkpoint_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"loss":1}\n')
    train(tmp_path)
    assert len(steps_of(tmp_path)) == 12


@pytest.mark.parametrize("name", ["test_byobnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_sync_batch_norm__computes_the_same_network(name: str) -> None:
    """torch's own conversion loses the activations of these."""
    import timm

    model = timm.create_model(name, num_classes=3).eval()
    picture = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(picture)
        after = convert_sync_batchnorm(model)(picture)  # type: ignore[no-untyped-call]
    assert torch.allclose(before, after, atol=1e-5)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())


def test_keep_every__checkpoints_stay_and_a_new_run_removes_them(tmp_path: Path) -> None:
    train(tmp_path, keep_every=5)
    names = sorted(path.name for path in tmp_path.glob("checkpoint_step*.pth"))
    assert names == ["checkpoint_step000005.pth", "checkpoint_step000010.pth"]
    assert load_checkpoint(tmp_path / names[0])["step"] == 5
    train(tmp_path, overwrite=True)
    assert not list(tmp_path.glob("checkpoint_step*.pth"))


def test_metrics__events(tmp_path: Path) -> None:
    train(tmp_path)
    events = [r for r in RunFolder(tmp_path).read_metrics() if "event" in r]
    evals = [r for r in events if r["event"] == "eval"]
    assert [r["step"] for r in evals] == [4, 8, 12]
    assert [r["epoch"] for r in evals] == [2, 3, 5]
    best = [r for r in events if r["event"] == "best"]
    assert best and all(r["metric"] == "score" for r in best)
    assert max(r["score"] for r in evals) == best[-1]["value"]


def test_config_json__optimizer_facts(tmp_path: Path) -> None:
    train(tmp_path, weight_decay=0.1)
    import json

    facts = json.loads((tmp_path / "config.json").read_text())["facts"]
    assert facts["optimizer"]["name"] == "AdamW"
    groups = facts["optimizer"]["groups"]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [g["parameters"] for g in groups] == [40, 9]
    assert facts["processes"] == 1 and facts["forward"] == "float32"
