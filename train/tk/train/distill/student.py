"""Students that see pixels: distilled from the chain of backbone and teacher, and the control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.distill.config import DistillConfig
from tk.train.distill.layout import INFO, MODELS
from tk.train.distill.results import Predictions
from tk.train.distill.split import Items, read_split
from tk.train.distill.steps import Step, without_paths
from tk.train.run.options import validate
from tk.train.student.config import StudentConfig

STUDENT, CONTROL = "image_student", "image_student_no_kd"
"""Names of the rows."""

FOLDERS = {STUDENT: "student", CONTROL: "student_no_kd"}
"""Name of a row -> folder of its run with the first seed; `_seedK` is added for the others."""

ANSWERS = "answers"
"""Folder of what the teacher says of the training crops, with `--student-teacher-views`."""

TEACHER = f"{MODELS}/teacher/seed0.pth"
"""The head whose answers are learned: the first one, not one chosen by the test."""


def student_runs(config: DistillConfig) -> dict[str, list[Path]]:
    """Row -> run folders, one for every seed; none without `--student`."""
    names = [STUDENT, *([CONTROL] if config.student_control else [])] if config.student else []
    return {
        name: [
            config.out / (FOLDERS[name] + (f"_seed{seed}" if seed else ""))
            for seed in range(config.student_seeds)
        ]
        for name in names
    }


def student_steps(config: DistillConfig, crops: Path) -> Iterator[Step]:
    """Yield a step for every student and control; each goes on where it was interrupted."""
    for name, folders in student_runs(config).items():
        for seed, folder in enumerate(folders):
            yield _step(config, crops, folder, seed, distilled=name == STUDENT)


def _step(config: DistillConfig, crops: Path, folder: Path, seed: int, *, distilled: bool) -> Step:
    run = config.out
    settings = student_settings(config, seed, distilled=distilled)

    def work() -> None:
        from tk.train.student.train import train_student

        made = student_config(config, crops, folder, seed, distilled=distilled)
        others = other_folders(crops, read_split(run / INFO).classes)
        train_student(made.model_copy(update={"exclude": others}))

    read = [run / TEACHER, run / "features.json"] if distilled else []
    read += [config.student_weights] if config.student_weights else []
    return Step(
        name=folder.name,
        title=f"{config.student} from pixels, {'distilled' if distilled else 'labels alone'}",
        run=work,
        options=without_paths(settings),
        inputs=[run / INFO, crops, *read, *(settings.get("unlabelled") or [])],
        outputs=[folder / "results.json", folder / "predictions.npz"],
        partial=[folder],
    )


def student_config(
    config: DistillConfig, crops: Path, folder: Path, seed: int, *, distilled: bool
) -> StudentConfig:
    """The configuration of a student that learns all classes in `crops`.

    Raises:
        TkError: values that `tk train student` does not take.
    """
    more = {
        "data": crops,
        "out": folder,
        "device": config.device,
        "gpus": config.student_gpus,
        "threads": config.threads,
        "goes_on": "",
    }
    return validate(StudentConfig, student_settings(config, seed, distilled=distilled) | more)


def student_settings(config: DistillConfig, seed: int, *, distilled: bool) -> dict[str, Any]:
    """Options of `tk train student`; the control differs by the teacher alone."""
    common: dict[str, Any] = {
        "model_id": config.student,
        "pretrained": config.student_pretrained and config.student_weights is None,
        "weights": config.student_weights,
        "img_size": config.student_img_size or config.img_size,
        "epochs": config.student_epochs,
        "batch_size": config.student_batch_size,
        "lr": config.student_lr,
        "aug": config.student_aug,
        "precision": config.student_precision,
        "seed": seed,
        "balance": config.class_weights == "balanced",
        "min_per_class": 1,  # the step `split` has looked
        "val_split": config.val_split,
        "test_split": config.test_split,
        "split_seed": config.split_seed,
    }
    if not distilled:
        return common
    return common | {
        "teacher_head": config.out / TEACHER,
        "teacher_backbone": config.out / "backbone.pth",
        "label_weight": config.student_label_weight,
        "kd_weight": config.student_kd_weight,
        "feature_weight": config.student_feature_weight,
        "temperature": config.temperature,
        "teacher_views": config.student_teacher_views,
        # The teacher is the slow one: students of all seeds share what it said.
        "teacher_cache": config.out / ANSWERS,
        "unlabelled": config.student_unlabelled,
    }


def other_folders(crops: Path, classes: tuple[str, ...]) -> list[str]:
    """Class folders that the run leaves out."""
    from tk.train.embedder.data import find_crops

    return [name for name in find_crops(crops)[0] if name not in classes]


def with_students(
    predictions: Predictions, items: Items, runs: dict[str, list[Path]]
) -> Predictions:
    """Add what students say of the same test patches.

    Raises:
        TkError: a run is missing or is of another split.
    """
    models = dict(predictions.models)
    for name, folders in runs.items():
        models[name] = np.stack([_said(folder, predictions.files, items) for folder in folders])
    return Predictions(predictions.labels, predictions.files, models)


def _said(folder: Path, files: tuple[str, ...], items: Items) -> NDArray[np.float32]:
    """(N, C) float32 probabilities of a run, in the order of `files`."""
    path = folder / "predictions.npz"
    if not path.is_file():
        raise TkError(f"{path} does not exist", fix=f"run the step {folder.name}")
    with np.load(path) as found:
        place = {name: row for row, name in enumerate(found["files"].tolist())}
        if set(place) != set(files):
            raise TkError(
                f"{folder.name} was measured on other test patches than the heads",
                expected=f"{len(files)} patches of class_info.json",
                found=f"{len(place)} patches, {len(set(place) & set(files))} of them the same",
                fix=f"--step {folder.name} --force",
            )
        said: NDArray[np.float32] = found["probabilities"][[place[name] for name in files]]
    if said.shape[1] != len(items.classes):
        raise TkError(f"{path} is of {said.shape[1]} classes", expected=str(len(items.classes)))
    return said


def student_facts(folder: Path) -> dict[str, Any]:
    """What a finished run says of its size: `parameters`, `mmacs`, `checkpoint`."""
    found: dict[str, Any] = read_json(folder / "results.json")
    return found
