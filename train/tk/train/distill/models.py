"""Which models are compared, and against which of them each is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tk.train.classifier.heads import LINEAR, STUDENT, TEACHER, HeadShape


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: of its folder.
        title: as the table says it; those of the seed where it has such a row.
        shape: hidden layers of the head.
        learns: `probe`: logistic regression; `labels`: as the teacher is trained; `distilled`: from
            the teacher; `control`: as a distilled one, but from the labels alone.
        features: of which backbone: `features`, `features_ssl`, `features_random`.
        reference: model that its accuracy is compared with in the column Improvement.
    """

    name: str
    title: str
    shape: HeadShape
    learns: Literal["probe", "labels", "distilled", "control"]
    features: str = "features"
    reference: str = ""

    @property
    def backbone(self) -> str:
        """File of the backbone, in the run folder."""
        return f"{self.features.replace('features', 'backbone')}.pth"


HEADS = (
    Model("linear", "Linear Probe (Original)", LINEAR, "probe"),
    Model("teacher", "Neural Network (Teacher)", TEACHER, "labels"),
    Model("student", "Tiny Student (Distilled)", STUDENT, "distilled", reference="teacher"),
    Model("student_no_kd", "Tiny Student (Labels Alone)", STUDENT, "control", reference="teacher"),
    Model(
        "teacher_sized_student",
        "Teacher-Sized Student (Distilled)",
        TEACHER,
        "distilled",
        reference="teacher",
    ),
    Model(
        "linear_ssl",
        "Linear Probe (SSL Finetuned)",
        LINEAR,
        "probe",
        "features_ssl",
        reference="linear",
    ),
    Model(
        "linear_random",
        "Linear Probe (Random Backbone)",
        LINEAR,
        "probe",
        "features_random",
        reference="linear",
    ),
)

QUESTIONS = (
    ("student", "student_no_kd", "does distillation help the tiny student"),
    ("student", "teacher", "is the tiny student as good as its teacher"),
    ("teacher_sized_student", "student", "would a larger student do better"),
    ("teacher", "linear", "is the network better than the linear probe"),
    ("image_student", "teacher", "is the student that sees pixels as good as the whole chain"),
    ("image_student", "image_student_no_kd", "does distillation help the student that sees pixels"),
    ("linear_ssl", "linear", "does self-supervised fine-tuning help"),
    ("linear", "linear_random", "are the backbone's features better than random ones"),
)
"""Pairs to compare: a, b, and what it answers when a is better than b."""
