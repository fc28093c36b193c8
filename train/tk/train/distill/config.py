"""Options of `tk train distill`; the keys of the seed's config.yaml are among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tk.runtime.preprocess import ImageSpec
from tk.train.data.steel.layout import BACKGROUND, CLASSES, IMAGES, TABLE, class_folder
from tk.train.run.config import Options
from tk.train.run.options import validate

StepName = Literal[
    "all",
    "prepare",
    "patches",
    "split",
    "features",
    "random_features",
    "ssl",
    "ssl_features",
    "train",
    "student",
    "student_no_kd",
    "compare",
]
"""Steps in their order; in the seed 1 prepare, 2 patches, 3 split and features, 4 ssl,
5 ssl_features, 6 random_features and train, 7 compare (0 is the option `download`)."""

Augmentation = Literal["none", "light", "tools", "surface"]

_IN_THE_RUN = "everything that the pipeline makes lies in the run folder, --out"
_READ = "sizes are read from the pictures"

_OF_ONE_COMMAND = {
    *("out", "step", "force", "download", "device", "threads", "workers"),
    *("csv_path", "img_dir", "target_height"),  # `data` and `target` say the same
}
"""Options that say nothing of what a run is."""


class DistillConfig(Options):
    """Options of the pipeline from strips to the table of classifiers."""

    aliases: ClassVar[dict[str, str]] = {
        "save_dir": "out",
        "min_bbox_size": "min_box",
        "target_width": "target",
        "max_patches_per_img": "max_per_image",
        "backbone": "model_id",
        "features_target_size": "img_size",
        "features_img_size": "img_size",
        "features_model_id": "model_id",
        "features_weights": "weights",
        "features_random_floor": "random_floor",
        "ssl_enabled": "ssl",
        "ssl_target_size": "ssl_img_size",
        "ssl_learning_rate": "ssl_lr",
        "batch_size": "head_batch_size",
        "student_model": "student",
    }

    file_sections: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("paths", "image_params", "extract_patches", "training"), ""),
        **dict.fromkeys(("data", "patches", "split", "heads"), ""),
        **dict.fromkeys(("extract_features", "features"), "features_"),
        **dict.fromkeys(("ssl_dino_finetune", "ssl"), "ssl_"),
        "student": "student_",
    }

    not_used: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("save_path", "annotation_path", "path_visualize"), _IN_THE_RUN),
        **dict.fromkeys(("report_dir", "models_dir"), _IN_THE_RUN),
        **dict.fromkeys(("save_dir_patches", "annotation_dir"), _IN_THE_RUN),
        **dict.fromkeys(("img_width", "img_height"), _READ),
        "epochs": "the seed's scripts never read it; --teacher-epochs and --distill-epochs do",
    }

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Run": ("data", "out", "config", "step", "force"),
        "Strips to patches": (
            *("download", "csv_path", "img_dir", "skip_missing", "min_contour_area", "min_box"),
            *("target", "target_height", "context", "max_per_image", "class_ids", "background"),
        ),
        "Split": ("test_split", "val_split", "split_seed", "min_per_class"),
        "Features": (
            *("model_id", "pretrained", "weights", "img_size", "features_batch_size"),
            "random_floor",
        ),
        "Self-supervised fine-tuning": (
            *("ssl", "ssl_algorithm", "ssl_epochs", "ssl_batch_size", "ssl_lr"),
            *("ssl_weight_decay", "ssl_freeze_blocks", "ssl_img_size", "ssl_out_dim"),
            "ssl_local_crops",
        ),
        "Heads": (
            *("seeds", "teacher_epochs", "teacher_lr", "distill_epochs", "distill_lr"),
            *("head_batch_size", "temperature", "alpha", "class_weights"),
        ),
        "Student from pixels": (
            *("student", "student_pretrained", "student_weights", "student_img_size"),
            *("student_epochs", "student_batch_size", "student_lr", "student_aug"),
            *("student_seeds", "student_control", "student_label_weight", "student_kd_weight"),
            *("student_feature_weight", "student_teacher_views", "student_unlabelled"),
            *("student_precision", "student_gpus"),
        ),
        "Machine": ("device", "threads", "workers"),
    }

    data: Path | None = Field(
        None,
        description="Severstal's layout (train.csv, train_images/), a folder of tk data severstal, "
        "or patches or crops by class: <class>/cropped/* or <class>/*",
    )
    out: Path = Field(description="run folder: features, models, tables, pictures")
    step: StepName = Field(
        "all",
        description="run this step alone; options that are not given are those that the run was "
        "made with (OUT/config.json)",
    )
    force: bool = Field(
        False, description="run steps again, from their beginning, though nothing has changed"
    )

    download: bool = Field(False, description="fetch the data from Kaggle where DATA is not there")
    csv_path: Path | None = Field(None, description="train.csv, instead of --data")
    img_dir: Path | None = Field(None, description="train_images beside it")
    skip_missing: bool = Field(False, description="leave out rows of train.csv without an image")
    min_contour_area: float = Field(32.0, ge=0, description="smaller parts of a mask are left out")
    min_box: int = Field(8, ge=1, description="parts with a narrower or lower box are left out")
    target: int = Field(224, ge=8, le=2048, description="side of a patch, pixels")
    target_height: int | None = Field(None, description="the same: patches are square")
    context: float = Field(0.2, ge=0, le=10, description="seen round a defect, share of its side")
    max_per_image: int = Field(5, ge=1, description="patches of one strip at most")
    class_ids: tuple[int, ...] = Field(
        tuple(CLASSES), min_length=1, description="Severstal's classes to tell apart"
    )
    background: int = Field(0, ge=0, description="patches of good strips, a class of their own")

    test_split: float = Field(0.2, gt=0, lt=1, description="share of the patches for the test")
    val_split: float = Field(
        0.1, ge=0, lt=1, description="share by which an image student chooses; heads learn from it"
    )
    split_seed: int = Field(42, ge=0, description="seed of the split")
    min_per_class: int = Field(
        3, ge=2, description="fewer patches of a class are refused; 2 needs --val-split 0"
    )

    model_id: str = Field(
        "vit_small_patch14_dinov2.lvd142m", description="frozen backbone: any model of timm"
    )
    pretrained: bool = Field(True, description="fetch its published weights, unless --weights")
    weights: Path | None = Field(
        None, description="a local file of weights instead: .pth, .safetensors, a run's checkpoint"
    )
    img_size: int = Field(224, ge=8, description="side of the backbone's canvas, pixels")
    features_batch_size: int = Field(32, ge=1, description="patches per call of the backbone")
    random_floor: bool = Field(True, description="a row for the backbone with random weights")

    ssl: bool = Field(False, description="steps 4 and 5: fine-tune the backbone without labels")
    ssl_algorithm: Literal["dino", "ibot"] = Field("dino", description="see tk train ssl")
    ssl_epochs: int = Field(3, ge=1, description="passes over the training patches")
    ssl_batch_size: int = Field(32, ge=2, description="patches per step")
    ssl_lr: float = Field(
        1e-6, gt=0, description="peak learning rate; the seed's moves next to nothing"
    )
    ssl_weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    ssl_freeze_blocks: int = Field(10, ge=0, description="first blocks that stay as they are")
    ssl_img_size: int = Field(0, ge=0, description="side of the global crops; 0: as --img-size")
    ssl_out_dim: int = Field(4096, ge=2, description="prototypes of the head")
    ssl_local_crops: int = Field(2, ge=0, description="local crops per patch")

    seeds: int = Field(
        5, ge=1, le=100, description="runs of each head; 5 or more for an interval worth its name"
    )
    teacher_epochs: int = Field(15, ge=1, description="passes of the teacher")
    teacher_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the teacher")
    distill_epochs: int = Field(20, ge=1, description="passes of the students")
    distill_lr: float = Field(1e-2, gt=0, description="Adam's learning rate for the students")
    head_batch_size: int = Field(32, ge=1, description="features per step")
    temperature: float = Field(3.0, gt=0, description="T of the distillation")
    alpha: float = Field(0.7, ge=0, le=1, description="weight of the teacher's answers")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: rare classes weigh more in the loss of the labels"
    )

    student: str = Field(
        "", description="timm model to distil from backbone and teacher, mobilenetv4_conv_small say"
    )
    student_pretrained: bool = Field(True, description="start from its published weights")
    student_weights: Path | None = Field(None, description="... or from a local file")
    student_img_size: int = Field(0, ge=0, description="side of its canvas; 0: as --img-size")
    student_epochs: int = Field(30, ge=1, description="passes over the patches")
    student_batch_size: int = Field(32, ge=1, description="patches per step")
    student_lr: float = Field(1e-3, gt=0, description="peak learning rate")
    student_aug: Augmentation = Field("surface", description="see tk train student")
    student_seeds: int = Field(1, ge=1, le=100, description="runs of it and of its control")
    student_control: bool = Field(True, description="train the same model on labels alone, too")
    student_label_weight: float = Field(1.0, ge=0, description="weight of the labels")
    student_kd_weight: float = Field(1.0, ge=0, description="weight of the teacher's logits")
    student_feature_weight: float = Field(1.0, ge=0, description="weight of its features")
    student_teacher_views: int = Field(
        0, ge=0, description="views that the teacher answers once; 0: one in every epoch"
    )
    student_unlabelled: list[Path] = Field(
        default=[], description="folders of more pictures, for the teacher to explain"
    )

    student_precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="of its forward pass; auto: bfloat16 where it is fast"
    )
    student_gpus: int = Field(0, ge=0, description="processes that train it, see tk train student")

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N, for the backbone")
    threads: int = Field(0, ge=0, description="CPU threads of PyTorch; 0: its default")
    workers: int = Field(1, ge=1, description="processes that cut patches")

    @model_validator(mode="before")
    @classmethod
    def _folder_of_the_table(cls, values: Any) -> Any:
        """Take `csv_path` and `img_dir` of the seed's file for the folder they lie in."""
        if not isinstance(values, dict) or values.get("data") or not values.get("csv_path"):
            return values
        table, images = Path(values["csv_path"]), Path(values.get("img_dir") or values["csv_path"])
        if table.name != TABLE or images not in (table, table.parent / IMAGES):
            raise ValueError(
                f"csv_path and img_dir must be DATA/{TABLE} and DATA/{IMAGES} of one folder, "
                f"found {table} and {images}: link them into such a folder"
            )
        return {**values, "data": table.parent}

    @model_validator(mode="after")
    def _fits(self) -> DistillConfig:
        if self.data is None:
            raise ValueError("missing option --data (or csv_path in the file)")
        if self.target_height not in (None, self.target):
            raise ValueError(
                f"patches are square: target_width {self.target}, target_height "
                f"{self.target_height}"
            )
        if wrong := set(self.class_ids) - set(CLASSES):
            raise ValueError(f"--class-ids: no such class {sorted(wrong)}, there are 1 to 4")
        if self.test_split + self.val_split >= 1:
            raise ValueError("--test-split and --val-split leave nothing to train on")
        return self

    def completed(self, recorded: dict[str, Any]) -> DistillConfig:
        """Take the options that were not given from those that the run was made with.

        Args:
            recorded: values of its config.json.

        Raises:
            TkError: the two do not go together.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        known = DistillConfig.model_fields.keys() & recorded.keys()
        kept = {name: recorded[name] for name in known - _OF_ONE_COMMAND}
        return validate(DistillConfig, kept | given)

    def source(self) -> Path:
        """The folder of data."""
        assert self.data is not None  # the validator saw to it
        return self.data

    def image_spec(self) -> ImageSpec:
        """How a patch becomes the input of the backbone."""
        return ImageSpec(self.img_size, self.img_size, anchor="center")

    def class_folders(self) -> tuple[str, ...]:
        """Folders of Severstal's patches that are classes here."""
        return (*(class_folder(kind) for kind in sorted(set(self.class_ids))), BACKGROUND)
