"""The student's task: who learns, who is asked, and what cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tests.train.student.runs import classes_of_crops, digits, options, write_teacher

from tk.runtime.errors import TkError
from tk.train.run.loop import prepare
from tk.train.run.sampling import sample_rng
from tk.train.student.config import StudentConfig
from tk.train.student.label_loss import UNLABELLED
from tk.train.student.task import StudentTask
from tk.train.student.teacher import open_teacher


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def teacher(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"), classes_of_crops(root))


def make(root: Path, out: Path, **more: Any) -> StudentTask:
    config = options(root, out, **more)
    prepare(config)
    return StudentTask(config)


def batch_of(task: StudentTask, indices: range) -> dict[str, torch.Tensor]:
    samples = [task.sample(i, 0, sample_rng(0, 0, i)) for i in indices]
    collated: dict[str, torch.Tensor] = task.collate(samples)
    return collated


def test_loss__gradient_goes_into_the_student_alone(
    root: Path, teacher: Path, tmp_path: Path
) -> None:
    task = make(root, tmp_path / "run", teacher=teacher / "image.pth")
    assert task.teacher is not None and not task.teacher.model.training
    before = {k: v.clone() for k, v in task.teacher.model.state_dict().items()}
    task.parts().train()
    task.train_mode()
    losses = task.loss(batch_of(task, range(8)), 0)
    torch.autograd.backward(losses["loss"])
    assert all(p.grad is not None for p in task.parts().parameters())
    assert all(p.grad is None for p in task.teacher.model.parameters())
    after = task.teacher.model.state_dict()  # its batch norm did not look at the batch either
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("teacher" in name for name, _ in task.parts().named_parameters())
    weights = task.config
    wanted = weights.label_weight * losses["label_loss"] + weights.kd_weight * losses["kd_loss"]
    wanted = wanted + weights.feature_weight * losses["feature_loss"]
    assert float(losses["loss"]) == pytest.approx(float(wanted))


def test_loss__without_labels_only_the_teacher_counts(
    root: Path, teacher: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    shutil.copytree(digits(tmp_path / "others", 170), more)
    task = make(root, tmp_path / "run", teacher=teacher / "image.pth", unlabelled=[more])
    labels = [crop.label for crop in task.data.train.crops]
    count = labels.count(UNLABELLED)
    # The first 150 of them are copies of `root`, and some of those are held out.
    held = sum(len(task.data.splits[name]) for name in ("val", "test"))
    assert count == 170 - held and len(task) == count + len(task.data.splits["train"])
    batch = batch_of(task, range(len(task) - 8, len(task)))
    assert batch["label"].tolist() == [UNLABELLED] * 8
    losses = task.loss(batch, 0)
    assert float(losses["label_loss"]) == 0 and float(losses["kd_loss"]) > 0
    assert np.isclose(task.label_loss.share, 1 - count / len(task))


def test_data__pictures_of_the_test_are_never_learnt_from(
    root: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make(root, tmp_path / "run", teacher=teacher / "image.pth", unlabelled=[root, root])
    held = {c.path.resolve() for name in ("val", "test") for c in task.data.splits[name]}
    train = [crop.path.resolve() for crop in task.data.train.crops]
    assert not held & set(train) and len(set(train)) == len(train)
    assert f"left out: {2 * len(held)} are crops of val or test, 0 are" in capsys.readouterr().err


def test_data__copies_of_the_test_are_never_learnt_from(
    root: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known by their bytes under any name, and by the photo that their name says they are of."""
    data = make(root, tmp_path / "run").data
    held = [crop for name in ("val", "test") for crop in data.splits[name]]
    more = tmp_path / "more"
    more.mkdir()
    for number, crop in enumerate(held):
        shutil.copy(crop.path, more / f"copy-{number}.png")
    for name, value in ((f"{held[0].group}_patch_7", 70), ("another", 90)):
        assert cv2.imwrite(str(more / f"{name}.png"), np.full((32, 32), value, np.uint8))
    (more / "link to nothing.png").symlink_to(tmp_path / "nothing.png")
    task = make(root, tmp_path / "run", teacher=teacher / "image.pth", unlabelled=[more])
    without = [crop.path.name for crop in task.data.train.crops if crop.label == UNLABELLED]
    assert without == ["another.png"]
    told = f"left out: {len(held)} are crops of val or test, 1 are named like crops of the same"
    assert told in capsys.readouterr().err


def test_answers__are_what_the_teacher_says_of_the_view_of_that_epoch(
    root: Path, teacher: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"teacher": teacher / "image.pth", "teacher_views": 2}
    task = make(root, tmp_path / "run", **given)
    (tmp_path / "run").mkdir()
    task.begin(torch.device("cpu"))
    assert task.teacher is not None and task.answers is not None
    for epoch in (0, 1, 3):
        sample = task.sample(5, epoch, np.random.default_rng(epoch))
        small, large = task.views(task.data.train[5], sample_rng(42, epoch % 2, 5))
        assert np.array_equal(sample["image"], small)
        said = task.teacher.answer(torch.from_numpy(large[None]))[0]
        assert torch.allclose(torch.from_numpy(sample["answer"]), said, atol=1e-5)
    views = [task.sample(5, epoch, np.random.default_rng(0))["image"] for epoch in range(3)]
    assert np.array_equal(views[0], views[2]) and not np.array_equal(views[0], views[1])


def test_answers__are_shared_by_runs_of_other_seeds_and_sizes(
    root: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"teacher": teacher / "image.pth", "teacher_views": 1}
    for seed in (0, 1):
        out = tmp_path / str(seed)
        given |= {"seed": seed, "img_size": 32 - 16 * seed}
        task = make(root, out, teacher_cache=tmp_path / "answers", **given)
        out.mkdir()
        task.begin(torch.device("cpu"))
        assert ("are reused" in capsys.readouterr().err) == bool(seed)


def test_open_teacher__chain_of_head_and_backbone_is_the_classifier(
    root: Path, teacher: Path, tmp_path: Path
) -> None:
    classes = classes_of_crops(root)
    whole = open_teacher(options(root, tmp_path, teacher=teacher / "image.pth"), classes)
    parts = open_teacher(
        options(
            root,
            tmp_path,
            teacher_head=teacher / "head.pth",
            teacher_backbone=teacher / "backbone.pth",
        ),
        classes,
    )
    assert whole is not None and parts is not None
    images = torch.randint(0, 255, (2, 48, 48, 3), dtype=torch.uint8)
    assert torch.equal(whole.answer(images), parts.answer(images))


def test_open_teacher__logits_come_in_the_order_of_the_students_classes(
    root: Path, teacher: Path, tmp_path: Path
) -> None:
    classes = classes_of_crops(root)
    config = options(root, tmp_path, teacher=teacher / "image.pth")
    straight, turned = (open_teacher(config, names) for names in (classes, classes[::-1]))
    assert straight is not None and turned is not None
    images = torch.randint(0, 255, (2, 48, 48, 3), dtype=torch.uint8)
    size = straight.feature_size
    assert torch.equal(
        straight.answer(images)[:, size:], turned.answer(images)[:, size:].flip(dims=(1,))
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": "head.pth"}, "a head alone"),
        ({"teacher": "backbone.pth"}, "is for another task"),
        ({"teacher": "missing.pth"}, "does not exist"),
        (
            {"teacher_head": "head.pth", "teacher_backbone": "other/backbone.pth"},
            "another backbone",
        ),
        ({"teacher": "strange/image.pth"}, "other classes"),
    ],
)
def test_open_teacher__refuses(
    root: Path, teacher: Path, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    shutil.copytree(teacher, tmp_path / "t")
    write_teacher(tmp_path / "t" / "other", classes_of_crops(root), size=32)
    torch.manual_seed(0)
    write_teacher(tmp_path / "t" / "strange", ("cat", "dog"))
    other = torch.load(tmp_path / "t" / "other" / "backbone.pth", weights_only=True)
    other["model"]["mean"] += 1
    torch.save(other, tmp_path / "t" / "other" / "backbone.pth")
    config = options(root, tmp_path / "run", **{k: tmp_path / "t" / v for k, v in given.items()})
    with pytest.raises(TkError, match=message):
        StudentTask(config)


def test_open_teacher__of_other_classes_still_has_features(
    root: Path, teacher: Path, tmp_path: Path
) -> None:
    strange = write_teacher(tmp_path / "strange", ("cat", "dog")) / "image.pth"
    task = make(root, tmp_path / "run", teacher=strange, kd_weight=0.0)
    losses = task.loss(batch_of(task, range(4)), 0)
    assert float(losses["feature_loss"]) > 0 and "kd_loss" not in losses


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unlabelled": ["x"]}, "teach nothing without a teacher"),
        ({"teacher_head": "x"}, "belong together"),
        ({"teacher": "x", "teacher_head": "y", "teacher_backbone": "z"}, "give either"),
        ({"label_weight": 0}, "nothing to learn from"),
        ({"teacher": "x", "kd_weight": 0, "feature_weight": 0}, "the teacher is not asked"),
        ({"val_split": 0.6, "test_split": 0.4}, "leave something"),
    ],
)
def test_config__what_does_not_fit_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig(data=Path("d"), out=Path("o"), **given)


def test_data__classes_with_two_samples_are_named(tmp_path: Path) -> None:
    root = digits(tmp_path / "digits")
    crops = sorted((root / "цифра 3" / "cropped").iterdir())
    for path in crops[2:]:
        path.unlink()
    with pytest.raises(TkError, match="цифра 3: 2"):
        StudentTask(options(root, tmp_path / "run"))


def test_data__run_folder_among_the_classes(root: Path) -> None:
    with pytest.raises(TkError, match="lies among the classes"):
        StudentTask(options(root, root / "run"))


def test_data__broken_pictures_are_left_out_and_named(
    tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = digits(tmp_path / "digits")
    (root / "цифра 0" / "cropped" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    whole = next((root / "цифра 1" / "cropped").iterdir()).read_bytes()
    (tmp_path / "more" / "good.png").write_bytes(whole)
    task = make(
        root, tmp_path / "run", teacher=teacher / "image.pth", unlabelled=[tmp_path / "more"]
    )
    assert len(task.data.skipped) == 2 and task.facts()["unlabelled"] == 1
    shown = capsys.readouterr().err
    assert "broken.png" in shown and "torn.png" in shown and "2 files left out" in shown
