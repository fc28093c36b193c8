"""What can be known of options before the first step, which may be hours before the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tk.runtime.errors import TkError
from tk.train.backbone import check_backbone
from tk.train.distill.config import DistillConfig
from tk.train.distill.ssl import ssl_config
from tk.train.distill.student import CONTROL, FOLDERS, STUDENT, student_config, student_runs


def check_options(config: DistillConfig) -> None:
    """Refuse options that a later step would refuse.

    Raises:
        TkError: no such model or canvas, files that do not exist, options of the student or of
            `--ssl` that those trainings do not take.
    """
    _check_files(config)
    check_backbone(config.model_id, config.img_size)
    if config.ssl:
        with _told_as("--ssl-..."):
            ssl_config(config)
    for name, folders in student_runs(config).items():
        with _told_as("--student-..."):
            made = student_config(config, config.source(), folders[0], 0, distilled=name == STUDENT)
        with _told_as("--student and --student-img-size"):
            check_backbone(made.model_id, made.img_size)


def _check_files(config: DistillConfig) -> None:
    students = ("student", FOLDERS[CONTROL])
    given: list[tuple[str, Path | None, tuple[str, ...]]] = [
        ("--weights", config.weights, ("features",)),
    ]
    if config.student:
        given.append(("--student-weights", config.student_weights, students))
        folders = config.student_unlabelled
        given += [("--student-unlabelled", folder, students[:1]) for folder in folders]
    for option, path, steps in given:
        asked = config.step == "all" or config.step in steps
        if asked and path is not None and not path.exists():
            raise TkError(f"{option} {path} does not exist", fix="give the path where it is")


@contextmanager
def _told_as(options: str) -> Iterator[None]:
    """Say which options an error is about: those of the other command have other names there."""
    try:
        yield
    except TkError as error:
        raise TkError(
            f"{options}: {error.what}",
            expected=error.expected,
            found=error.found,
            fix="the options that begin so are in tk train distill --help",
        ) from None
