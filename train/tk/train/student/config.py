"""Options of `tk train student`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tk.runtime.preprocess import ImageSpec
from tk.train.run.config import TrainConfig


class StudentConfig(TrainConfig):
    """Options of a student; `save_every` and `eval_every` count epochs here, not steps."""

    may_differ: ClassVar[frozenset[str]] = TrainConfig.may_differ | {
        # Memory; and files that are compared by what is in them.
        *("cache_gb", "data", "unlabelled", "weights"),
        *("teacher", "teacher_head", "teacher_backbone", "teacher_cache"),
    }

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Run": ("data", "out", "config", "resume", "overwrite", "seed"),
        "Data": (
            *("unlabelled", "merge", "exclude", "min_per_class", "val_split", "test_split"),
            *("split_seed", "aug", "area", "cache_gb"),
        ),
        "Model": ("model_id", "pretrained", "weights", "img_size"),
        "Teacher": (
            *("teacher", "teacher_head", "teacher_backbone", "teacher_views", "teacher_cache"),
        ),
        "Loss": (
            *("label_weight", "kd_weight", "temperature", "feature_weight", "label_smoothing"),
            "balance",
        ),
        "Training": (
            *("epochs", "batch_size", "accumulate", "lr", "weight_decay", "warmup", "clip"),
            *("ema_decay", "eval_every", "save_every", "steps"),
        ),
        "Machine": ("device", "gpus", "precision", "threads", "workers"),
        "ClearML": ("use_clearml", "clearml_project", "clearml_task_name"),
    }

    data: Path = Field(description="folder with the classes: DATA/<class>/cropped/*")
    unlabelled: list[Path] = Field(
        default=[],
        description="folders of more pictures, searched whole; they have no label, only a teacher",
    )
    merge: list[str] = Field(
        default=[], description="FROM=TO: crops of class folder FROM belong to class TO"
    )
    exclude: list[str] = Field(
        default=[], description="pattern of class folders or CLASS/FILE to leave out: 'group*'"
    )
    min_per_class: int = Field(10, ge=1, description="fewer images in a class are an error")
    val_split: float = Field(0.1, ge=0, lt=1, description="share for validation; 0: the last wins")
    test_split: float = Field(0.2, ge=0, lt=1, description="share for the test")
    split_seed: int = Field(42, ge=0, description="seed of the splits, apart from --seed")
    aug: Literal["none", "light", "tools", "surface"] = Field(
        "surface",
        description="augmentation: none, light (keeps orientation), tools (any angle), surface "
        "(mirrored both ways, parts of the crop)",
    )
    area: float = Field(
        0.5, gt=0, le=1, description="least share of a crop's area that --aug surface shows"
    )
    cache_gb: float = Field(4.0, ge=0, description="memory for decoded pictures, GB")
    model_id: str = Field("mobilenetv4_conv_small", description="timm model to train")
    pretrained: bool = Field(True, description="start from the model's published weights")
    weights: Path | None = Field(
        None, description="local file with its weights, also of another --img_size"
    )
    img_size: int = Field(224, ge=16, description="side of its square canvas, pixels")
    teacher: Path | None = Field(
        None, description="checkpoint of an image classifier; without a teacher: labels alone"
    )
    teacher_head: Path | None = Field(
        None, description="instead of --teacher: checkpoint of a head, and"
    )
    teacher_backbone: Path | None = Field(None, description="checkpoint of the head's backbone")
    teacher_views: int = Field(
        0,
        ge=0,
        description="augmented views of each crop that the teacher answers once, before the "
        "training; 0: it answers to a fresh view in every epoch",
    )
    teacher_cache: Path | None = Field(
        None, description="folder for those answers, to be shared by runs; default: in --out"
    )
    label_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy with labels")
    kd_weight: float = Field(1.0, ge=0, description="weight of the distillation of logits")
    temperature: float = Field(3.0, gt=0, description="temperature of both in it")
    feature_weight: float = Field(1.0, ge=0, description="weight of the distillation of features")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy")
    balance: bool = Field(False, description="rare classes weigh more in the cross-entropy")
    epochs: int = Field(30, ge=1, description="passes over all crops")
    steps: int = Field(0, ge=0, description="optimizer steps; 0: as many as the epochs need")
    batch_size: int = Field(32, ge=1, description="samples per step, over all processes")
    warmup: int = Field(
        50, ge=0, description="steps of linear warm-up before the cosine; at most a tenth of all"
    )
    eval_every: int = Field(1, ge=0, description="epochs between validations; 0: at the end only")
    save_every: int = Field(1, ge=0, description="epochs between checkpoints; 0: at the end only")
    keep_every: int = Field(0, json_schema_extra={"hidden": True})

    @model_validator(mode="after")
    def _fits_together(self) -> StudentConfig:
        if self.val_split + self.test_split >= 1:
            raise ValueError("val_split + test_split must leave something to train on")
        if (self.teacher_head is None) != (self.teacher_backbone is None):
            raise ValueError("teacher_head and teacher_backbone belong together")
        if self.teacher is not None and self.teacher_head is not None:
            raise ValueError("give either teacher, or teacher_head with teacher_backbone")
        if self.unlabelled and not self.distils():
            raise ValueError("pictures without labels (unlabelled) teach nothing without a teacher")
        if not self.label_weight and not self.distils():
            raise ValueError("nothing to learn from: label_weight is 0 and there is no teacher")
        if self.has_teacher() and not self.kd_weight and not self.feature_weight:
            raise ValueError("the teacher is not asked: kd_weight and feature_weight are both 0")
        return self

    def has_teacher(self) -> bool:
        """Say whether a teacher is given."""
        return self.teacher is not None or self.teacher_head is not None

    def distils(self) -> bool:
        """Say whether a teacher is given and listened to."""
        return self.has_teacher() and bool(self.kd_weight or self.feature_weight)

    def image_spec(self) -> ImageSpec:
        """The student's canvas, which training, export and runtime share."""
        return ImageSpec(self.img_size, self.img_size, anchor="center")

    def epoch_steps(self, samples: int) -> int:
        """Optimizer steps that are called an epoch: nearest to a pass over `samples` crops."""
        return max(1, round(samples / self.batch_size))

    def in_steps(self, samples: int) -> StudentConfig:
        """The same run counted in optimizer steps, as the training loop wants it.

        Args:
            samples: labelled and unlabelled crops of the training split.
        """
        epoch = self.epoch_steps(samples)
        steps = self.steps or epoch * self.epochs
        return self.model_copy(
            update={
                "steps": steps,
                "warmup": min(self.warmup, steps // 10),
                "eval_every": self.eval_every * epoch,
                "save_every": self.save_every * epoch,
            }
        )
