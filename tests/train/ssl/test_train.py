"""Whole runs of `tk train ssl`: what they leave, what they refuse, what they notice."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tests.train.ssl.runs import config, events_of, steps_of, write_digits

from tk.runtime.errors import TkError
from tk.train.run.checkpoint import load_checkpoint
from tk.train.ssl.artifacts import read_artifacts
from tk.train.ssl.task import SslTask
from tk.train.ssl.train import train_ssl


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 96)


def test_train__files_of_a_run_under_their_own_names(digits: Path, tmp_path: Path) -> None:
    settings = config(
        digits, tmp_path / "run", probe_dir=digits, algorithm="ibot",
        checkpoint_last_name="last.pt", checkpoint_best_name="best.pt",
        checkpoint_history_file="training_metrics.jsonl", experiment_name="digits",
        experiment_tag=["a", "b"], experiment_notes="más", stream="face",
    )  # fmt: skip
    best = train_ssl(settings)
    assert best == settings.out / "best.pt"
    names = {path.name for path in settings.out.iterdir()}
    assert {"last.pt", "best.pt", "training_metrics.jsonl", "params.json", "artifacts.json"} < names
    params = json.loads((settings.out / "params.json").read_text("utf-8"))
    assert params["config"]["experiment_notes"] == "más"
    assert params["config"]["train_dir"] == [str(digits)]
    assert params["facts"]["model"] and params["versions"]["torch"]
    steps, best_events = steps_of(settings), events_of(settings, "best")
    assert len(steps) == 18 and best_events
    names = {"step", "epoch", "lr", "loss", "dino_loss", "ibot_loss", "teacher_entropy"}
    assert names <= set(steps[0]) and all(math.isfinite(step["loss"]) for step in steps)
    evaluations = events_of(settings, "eval")
    assert len(evaluations) == 3 and {"knn", "linear", "rank_me"} <= set(evaluations[0])
    highest = max((e["knn"], e["linear"]) for e in evaluations)
    assert (best_events[-1]["value"], best_events[-1]["metric"]) == (highest[0], "knn")
    found = {artifact["name"]: artifact for artifact in read_artifacts(settings.out)}
    for name, file in (("checkpoint_last", "last.pt"), ("checkpoint_best", "best.pt")):
        artifact = found[name]
        assert artifact["path"] == file and artifact["metadata"]["stream"] == "face"
        data = (settings.out / file).read_bytes()
        assert artifact["sha256"] == hashlib.sha256(data).hexdigest()


def test_train__best_is_by_rank_without_labels(digits: Path, tmp_path: Path) -> None:
    settings = config(digits, tmp_path / "run", epochs=2)
    train_ssl(settings)
    evaluations = events_of(settings, "eval")
    assert set(evaluations[0]) == {"event", "step", "epoch", "rank_me"}
    best = events_of(settings, "best")[-1]
    assert best["metric"] == "rank_me"
    assert best["value"] == max(evaluation["rank_me"] for evaluation in evaluations)


def test_train__steps_follow_the_schedules(digits: Path, tmp_path: Path) -> None:
    settings = config(
        digits, tmp_path / "run", epochs=4, lr=1.0e-3, lr_end=1e-5, weight_decay=0.1,
        weight_decay_end=0.5, freeze_last_layer_epochs=0.5, eval_every=0,
    )  # fmt: skip
    task = SslTask(settings)
    assert task.plan.steps == 24 and task.plan.warmup == 2
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    train_ssl(settings)
    state = load_checkpoint(settings.out / "checkpoint_last.pt")
    rates = [step["lr"] for step in steps_of(settings)]
    assert max(rates) == pytest.approx(1e-3, rel=1e-6) and rates[-1] < 5e-5
    groups = state["optimizer"]["param_groups"]
    decays = {round(group["weight_decay"], 6) for group in groups}
    share = 0.5 * (1 + math.cos(math.pi * 23 / 24))
    assert decays == {0.0, round(0.5 - 0.4 * share, 6)}
    assert {group["eps"] for group in groups} == {1e-12}
    assert set(before) == set(state["others"]["student"])


def test_before_update__last_layer_and_backbone_wait(digits: Path, tmp_path: Path) -> None:
    settings = config(
        digits, tmp_path / "run", freeze_last_layer_epochs=1, freeze_backbone_epochs=0.5
    )
    task = SslTask(settings)
    groups = task.parameter_groups(0.04)
    last = [p for group in groups if group["last_layer"] for p in group["params"]]
    backbone = [p for p in task.student.backbone.parameters() if p.requires_grad]
    assert last and backbone

    def moving(step: int) -> tuple[bool, bool, bool]:
        for parameter in task.student.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        task.before_update(step, groups)
        others = [p for head in task.student.heads() for p in head.mlp.parameters()]
        return tuple(all(p.grad is not None for p in some) for some in (last, backbone, others))  # type: ignore[return-value]

    assert moving(2) == (False, False, True)
    assert moving(3) == (False, True, True)
    assert moving(6) == (True, True, True)


def test_train__accumulation_is_the_same_run(digits: Path, tmp_path: Path) -> None:
    """Without batch norm a batch in two parts gives the same gradient and the same centre."""
    states = []
    for name, parts in (("one", 1), ("two", 2)):
        settings = config(
            digits, tmp_path / name, accumulate=parts, head_norm="none", epochs=1, adam_eps=1e-8
        )
        train_ssl(settings)
        states.append(load_checkpoint(settings.out / "checkpoint_last.pt"))
    for part in ("student", "centerings"):
        one, two = (state["others"][part] for state in states)
        for name in one:
            assert torch.allclose(one[name], two[name], rtol=1e-3, atol=2e-4), name


def test_train__bfloat16_and_compiled_stay_near_float32(
    digits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Compiled without code generation: what is tested is that the graph can be captured."""
    compiled = []

    def compile_eagerly(self: torch.nn.Module) -> None:
        compiled.append(self)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    losses = {}
    for name, changes in (
        ("plain", {}),
        ("half", {"precision": "bfloat16"}),
        ("fast", {"compile": True}),
    ):
        values: dict[str, Any] = (
            dict(steps=3, eval_every=0, save_every=0, algorithm="ibot") | changes
        )
        settings = config(digits, tmp_path / name, **values)
        train_ssl(settings)
        losses[name] = [step["loss"] for step in steps_of(settings)]
    assert len(compiled) == 2
    assert losses["fast"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["half"] == pytest.approx(losses["plain"], rel=2e-2)
    assert losses["half"] != losses["plain"]


def broken(folder: Path) -> None:
    (folder / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (folder / "notes.txt").write_text("no picture")


def test_train__broken_files_are_left_out_and_listed(tmp_path: Path, capfd: Any) -> None:
    folder = write_digits(tmp_path / "digits", 32)
    broken(folder)
    whole = next((folder / "1").glob("*.png"))  # its header stays good
    whole.write_bytes(whole.read_bytes()[:60])
    settings = config(folder, tmp_path / "run", epochs=1)
    train_ssl(settings)
    text = capfd.readouterr().err
    assert "broken.png" in text and "1 files left out" in text
    assert f"1 pictures could not be decoded, others took their places: 0/1/{whole.name}" in text
    assert whole.name in (settings.out / "train.log").read_text("utf-8")
    params = json.loads((settings.out / "params.json").read_text("utf-8"))
    assert params["facts"]["pictures"] == 32 and params["facts"]["left_out"] == 1


def test_train__pictures_of_any_size_and_kind(tmp_path: Path, capfd: Any) -> None:
    """Large, small, grey, upright and wide ones, in folders of folders."""
    folder = tmp_path / "photos" / "deep" / "deeper"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = [(40, 90, 3), (5, 3), (16, 16, 3), (64, 20, 4)]
    for number, ending in enumerate(("png", "jpg", "JPEG", "bmp", "tiff", "tif")):
        shape = shapes[number % 3]
        cv2.imwrite(str(folder / f"{number}.{ending}"), rng.integers(0, 255, shape).astype("uint8"))
    settings = config(tmp_path / "photos", tmp_path / "run", batch_size=6, epochs=2)
    train_ssl(settings)
    assert len(steps_of(settings)) == 2
    assert "2 of 6 pictures are smaller than --image-size 16" in capfd.readouterr().err


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def only(count: int) -> Any:
    def keep(folder: Path) -> None:
        for path in sorted(folder.rglob("*.png"))[count:]:
            path.unlink()

    return keep


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (empty, {}, "no images under"),
        (shutil.rmtree, {}, "does not exist"),
        (only(1), {}, "too few pictures"),
        (only(15), {}, "larger than the data set"),
        (lambda folder: None, {"probe_dir": Path("nowhere")}, "does not exist"),
        (lambda folder: None, {"accumulate": 3}, "divided evenly"),
    ],
)
def test_train__what_cannot_be_trained_on(
    tmp_path: Path, damage: Any, changes: dict[str, Any], message: str
) -> None:
    folder = write_digits(tmp_path / "digits", 32)
    damage(folder)
    with pytest.raises(TkError, match=message):
        train_ssl(config(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "checkpoint_last.pt").exists()


def test_train__run_folder_among_the_pictures(digits: Path) -> None:
    with pytest.raises(TkError, match="lies among the pictures"):
        train_ssl(config(digits, digits / "run"))


def test_train__nan_stops_the_run_before_it_is_saved(
    digits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    after_step = SslTask.after_step

    def poison(self: SslTask, step: int) -> None:
        after_step(self, step)
        if step == 7:
            self.student.get_parameter("head.mlp.0.weight").data[0, 0] = float("nan")

    monkeypatch.setattr(SslTask, "after_step", poison)
    settings = config(digits, tmp_path / "run")
    with pytest.raises(TkError, match="nan at step 8"):
        train_ssl(settings)
    state = load_checkpoint(settings.out / "checkpoint_last.pt")
    assert state["step"] == 6
    assert all(bool(v.isfinite().all()) for v in state["others"]["student"].values())
