"""Whole runs: what is learnt, what is left behind, and that neither a kill nor a second process
changes it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.run.test_fit import same
from tests.train.student.runs import classes_of_crops, digits, options, write_teacher

from tk.runtime.images import read_image
from tk.runtime.metrics.classification import accuracy
from tk.runtime.preprocess import fit
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import load_classifier
from tk.train.classifier.cost import multiply_adds
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.folder import RunFolder
from tk.train.student.config import StudentConfig
from tk.train.student.train import train_student

KEYS = ("model", "others", "average", "optimizer", "rng", "best", "extra", "step")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    """A teacher on labels alone."""
    root = digits(tmp_path_factory.mktemp("digits"), 600)
    config = options(
        root, tmp_path_factory.mktemp("run") / "teacher", model_id="test_resnet", epochs=6,
        batch_size=32, lr=4e-3, ema_decay=0.9, balance=True,
    )  # fmt: skip
    train_student(config)
    return config


def results(config: StudentConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.out / "results.json").read_text(encoding="utf-8"))
    return found


def test_train_student__learns_digits_and_leaves_what_it_promises(learnt: StudentConfig) -> None:
    found = results(learnt)
    assert found["accuracy"] >= 0.85 and found["macro_f1"] >= 0.85
    with np.load(learnt.out / "predictions.npz", allow_pickle=False) as file:
        arrays = dict(file)
    count = len(arrays["labels"])
    assert arrays["probabilities"].shape == (count, 10) and count == sum(
        map(sum, found["confusion"])
    )
    assert np.allclose(arrays["probabilities"].sum(axis=1), 1, atol=1e-5)
    assert accuracy(arrays["labels"], arrays["probabilities"].argmax(1)) == found["accuracy"]
    loaded = load_classifier(learnt.out / "checkpoint_best.pth")
    assert loaded.architecture.input == "image" and loaded.architecture.img_size == 32
    pictures = [read_image(learnt.data / str(name)) for name in arrays["files"]]
    canvases = np.stack([fit(loaded.image_spec, picture)[0] for picture in pictures])
    with torch.inference_mode():
        probabilities, _ = loaded.model(torch.from_numpy(canvases))
    assert np.allclose(probabilities.numpy(), arrays["probabilities"], atol=1e-4)


def test_train_student__distilled_from_it_and_a_finished_run_is_left_alone(
    learnt: StudentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(
        learnt.data, tmp_path / "run", model_id="test_vit", epochs=2, label_weight=0.0,
        teacher=learnt.out / "checkpoint_best.pth", img_size=16, val_split=0.0,
    )  # fmt: skip
    best = train_student(config)
    assert best.name == "checkpoint_last.pth"  # there is no validation to choose by
    found = results(config)
    assert found["teacher"]["accuracy"] == pytest.approx(results(learnt)["accuracy"], abs=0.02)
    assert found["distilled"] and 0 <= found["agreement"] <= 1
    records = [r for r in RunFolder(config.out).read_metrics() if "loss" in r]
    first, last = (np.mean([r["kd_loss"] for r in part]) for part in (records[:10], records[-10:]))
    assert last < 0.8 * first
    assert not any(name.startswith("teacher") for name in load_checkpoint(best)["others"])
    names = ("checkpoint_last.pth", "metrics.jsonl", "predictions.npz", "results.json")
    before = [(config.out / name).read_bytes() for name in names]
    capsys.readouterr()
    train_student(config)
    assert "finished already" in capsys.readouterr().err
    assert [(config.out / name).read_bytes() for name in names] == before


def test_train_student__goes_on_from_another_resolution(
    learnt: StudentConfig, tmp_path: Path
) -> None:
    config = options(
        learnt.data, tmp_path / "run", model_id="test_resnet", img_size=48, steps=1, lr=1e-9,
        weights=learnt.out / "checkpoint_best.pth",
    )  # fmt: skip
    best = train_student(config)
    one, other = (load_classifier(p).model for p in (learnt.out / "checkpoint_best.pth", best))
    weights = dict(other.named_parameters())
    for name, value in one.named_parameters():
        if name.startswith("encoder."):
            assert torch.allclose(value, weights[name], atol=1e-6), name


def test_multiply_adds__of_a_network_that_is_easily_counted() -> None:
    encoder = ImageEncoder("test_resnet", 32)
    encoder.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1))
    assert multiply_adds(encoder) == 16 * 16 * 8 * 3 * 9


def command(root: Path, out: Path, teacher: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "tk.cli", "train", "student", "--data", str(root)),
        *("--out", str(out), "--model_id", "test_resnet", "--no-pretrained", "--img_size", "32"),
        *("--aug", "surface", "--batch_size", "16", "--epochs", "3", "--min_per_class", "3"),
        *("--device", "cpu", "--threads", "1", "--ema_decay", "0.9", "--lr", "2e-3"),
        *("--teacher", str(teacher / "image.pth"), "--unlabelled", str(root / "цифра 1")),
        *("--workers", str(workers)),
    ]


@pytest.mark.slow
def test_train_student__a_killed_run_ends_as_if_nothing_had_happened(
    few: Path, tmp_path: Path
) -> None:
    teacher = write_teacher(tmp_path / "teacher", classes_of_crops(few))
    outs = [tmp_path / name for name in ("whole", "killed")]
    subprocess.run(command(few, outs[0], teacher, 0), check=True, capture_output=True, timeout=300)
    again = command(few, outs[1], teacher, 2)
    process = subprocess.Popen(again, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics, deadline = outs[1] / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 10):  # in epoch 2 of 3
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -9
    subprocess.run(again, check=True, capture_output=True, timeout=300)
    states = [load_checkpoint(out / "checkpoint_last.pth") for out in outs]
    for key in KEYS:
        assert same(states[0][key], states[1][key]), key
    for name in ("metrics.jsonl", "predictions.npz", "splits.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
    figures = [json.loads((out / "results.json").read_text("utf-8")) for out in outs]
    digests = [found.pop("sha256") for found in figures]  # of files that name their own folder
    assert figures[0] == figures[1] and len(set(digests)) == 2


def test_train_student__resume_with_another_teacher_is_refused(few: Path, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", classes_of_crops(few))
    line = command(few, tmp_path / "run", teacher, 0)
    stop = [*line, "--steps", "2"]
    subprocess.run(stop, check=True, capture_output=True, timeout=300)
    state = torch.load(teacher / "image.pth", weights_only=True)
    state["model"]["head.0.bias"] += 1
    torch.save(state, teacher / "image.pth")
    done = subprocess.run(stop, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "the data changed since this run began" in done.stderr
    assert "teacher" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_train_student__two_processes_equal_one(few: Path, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", classes_of_crops(few)) / "image.pth"
    given: dict[str, Any] = {"teacher": teacher, "unlabelled": [few / "цифра 1"], "epochs": 1}
    train_student(options(few, tmp_path / "one", **given))
    train_student(options(few, tmp_path / "two", gpus=2, **given))
    one, two = (load_checkpoint(tmp_path / n / "checkpoint_last.pth") for n in ("one", "two"))
    assert len(two["rng"]) == 2
    for part in ("model", "features"):
        values = [s["model"] if part == "model" else s["others"][part] for s in (one, two)]
        for name, value in values[0].items():
            assert torch.allclose(value, values[1][name], rtol=1e-3, atol=2e-4), name
    records = [RunFolder(tmp_path / n).read_metrics() for n in ("one", "two")]
    for first, second in zip(*records, strict=True):
        for name in ("loss", "label_loss", "kd_loss", "feature_loss", "val_loss"):
            if name in first:
                assert first[name] == pytest.approx(second[name], rel=2e-3, abs=1e-6), name
