"""The step `student`: image models distilled from backbone and teacher, measured as the heads."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_runs import tiny_config, write_crops

from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import read_json
from tk.train.classifier.checkpoint import load_classifier, load_encoder
from tk.train.classifier.cost import head_multiply_adds, multiply_adds
from tk.train.classifier.heads import count_parameters
from tk.train.classifier.model import ImageClassifier
from tk.train.distill.config import DistillConfig
from tk.train.distill.pipeline import train_distill
from tk.train.distill.split import read_split
from tk.train.student.task import StudentTask


def config(folder: Path, **changes: Any) -> DistillConfig:
    values: dict[str, Any] = dict(
        model_id="test_vit",
        student="test_efficientnet",
        student_pretrained=False,
        student_epochs=1,
        student_teacher_views=1,
        seeds=1,
        random_floor=False,
        threads=1,
    )
    return tiny_config(folder / "crops", folder / "run", **(values | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    crops = write_crops(folder / "crops", 16)
    # A broken file must not shift one split against the other.
    (crops / "digit 1" / "n9999.png").write_bytes(b"no picture")
    train_distill(config(folder))
    return folder


def test_student__rows_of_the_whole_chain(made: Path) -> None:
    run = made / "run"
    results = read_json(run / "results.json")
    rows = {row["name"]: row for row in results["rows"]}
    student, control = rows["image_student"], rows["image_student_no_kd"]
    assert student["kind"] == "chain" and student["backbone"] == ""
    assert student["title"] == "test_efficientnet from Pixels (Distilled)"
    loaded = load_classifier(run / student["checkpoint"])
    assert isinstance(loaded.model, ImageClassifier)
    assert count_parameters(loaded.model) == student["parameters"] == control["parameters"]
    encoder, _ = load_encoder(run / "backbone.pth")
    whole = count_parameters(encoder) + rows["teacher"]["parameters"]
    assert student["compression"] == pytest.approx(whole / student["parameters"])
    # As tk bench table counts: head and all.
    macs = multiply_adds(loaded.model.encoder) + head_multiply_adds(loaded.model.head)
    assert student["mflops"] == pytest.approx(2 * macs / 1e6, rel=1e-9)
    assert head_multiply_adds(loaded.model.head) == loaded.architecture.features * 4
    pairs = [(found["a"], found["b"]) for found in results["comparisons"]]
    assert ("image_student", "image_student_no_kd") in pairs
    # Kept where students of other seeds find them.
    assert (run / "answers").is_dir() and not (run / "student" / "answers").exists()


def test_student__measured_on_the_test_patches_of_the_heads(made: Path) -> None:
    items = read_split(made / "run" / "class_info.json")
    with np.load(made / "run" / "student" / "predictions.npz") as found:
        files, labels = found["files"].tolist(), found["labels"]
    rows = [items.files.index(file) for file in files]
    assert sorted(rows) == items.rows("test").tolist()
    assert labels.tolist() == items.labels[rows].tolist()
    trained = read_json(made / "run" / "student" / "splits.json")["files"]["train"]
    seen = {file for files in trained.values() for file in files}
    assert seen and not seen & {items.files[row] for row in items.rows("test", "val")}


def test_student__another_teacher_leaves_the_control_alone(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)  # another command: it names other temporary files
    shutil.copytree(made, tmp_path / "copy")
    train_distill(config(tmp_path / "copy"))  # moved, and nothing to do
    assert capsys.readouterr().err.count(": unchanged") == 6
    # What neither teacher nor students read trains the heads again, and comes to the same teacher.
    train_distill(config(tmp_path / "copy", alpha=0.5))
    text = capsys.readouterr().err
    assert "train: linear probes" in text
    assert "student: unchanged" in text and "student_no_kd: unchanged" in text
    train_distill(config(tmp_path / "copy", teacher_epochs=2))
    text = capsys.readouterr().err
    assert "student: test_efficientnet" in text and "student_no_kd: unchanged" in text
    train_distill(config(tmp_path / "copy", teacher_epochs=2, step="student"))
    assert "student: unchanged" in capsys.readouterr().err
    # Without --student its rows go, too.
    train_distill(config(tmp_path / "copy", teacher_epochs=2, student=""))
    names = [row["name"] for row in read_json(tmp_path / "copy" / "run" / "results.json")["rows"]]
    assert names == ["linear", "teacher", "student", "student_no_kd", "teacher_sized_student"]


def test_student__of_other_test_patches_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "student" / "predictions.npz"
    with np.load(path) as found:
        arrays = dict(found)
    arrays["files"] = np.asarray([f"x{name}" for name in arrays["files"]])
    np.savez(path, **arrays)
    with pytest.raises(TkError, match="measured on other test patches") as caught:
        train_distill(config(tmp_path / "copy", step="compare"))
    assert caught.value.fix == "--step student --force"


@pytest.mark.parametrize("force", [False, True])
def test_student__interrupted_says_what_goes_on(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    force: bool,
) -> None:
    """With --force the same command would begin anew."""
    shutil.copytree(made, tmp_path / "copy")
    again = config(tmp_path / "copy", student_epochs=2, step="student")
    loss = StudentTask.loss

    def stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(StudentTask, "loss", stop)
        with pytest.raises(Interrupted) as caught:
            train_distill(again.model_copy(update={"force": force}))
    said = "the same command without --force" if force else "the same command"
    assert caught.value.fix == f"{said} goes on with it"
    text = capsys.readouterr().err
    assert "interrupted after step 1" in text and "--resume" not in text
    train_distill(again)
    assert "at step 1" in capsys.readouterr().err


def test_student__that_timm_does_not_know(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", 6)
    with pytest.raises(TkError, match="timm knows no such model"):
        train_distill(config(tmp_path, student="no_such_net"))
