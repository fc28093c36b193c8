"""Options of `tk train embedder`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tk.runtime.preprocess import CropSpec, ImageSpec
from tk.train.run.config import TrainConfig


class EmbedderConfig(TrainConfig):
    """Options of the embedder; `save_every` and `eval_every` count epochs here, not steps.

    `checkpoint_last.pth` is written after every epoch; `save_every` is for those that stay.
    """

    may_differ: ClassVar[frozenset[str]] = TrainConfig.may_differ | {
        # Memory and disk; what made the data (compared by what it is); what results are made with.
        *("cache_gb", "feature_gb", "data", "merge", "exclude", "auto_generate_masks", "sam2_cfg"),
        *("sam2_ckpt", "weights", "max_refs_per_class", "sub_prototypes", "false_rejections"),
    }

    aliases: ClassVar[dict[str, str]] = {
        "data_root": "data",
        "out_dir": "out",
        "batch": "batch_size",
    }

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Run": ("data", "out", "config", "resume", "overwrite", "seed"),
        "Data": (
            *("merge", "exclude", "min_per_class", "val_split", "test_split", "aug", "crop_mode"),
            *("mix_mask_p", "crop_margin", "auto_generate_masks", "sam2_cfg", "sam2_ckpt"),
            "cache_gb",
        ),
        "Model": ("model_id", "pretrained", "weights", "img_size", "emb_dim", "head_norm"),
        "Frozen backbone": ("freeze_backbone", "feature_views", "feature_gb"),
        "Fine-tuning": ("backbone_lr", "layer_decay", "ema_decay"),
        "Loss": ("loss", "scale", "margin", "margin_warmup", "sub_centers"),
        "Training": (
            *("epochs", "batch_size", "accumulate", "lr", "weight_decay", "warmup", "clip"),
            *("eval_every", "save_every", "steps"),
        ),
        "Prototypes": ("max_refs_per_class", "sub_prototypes", "false_rejections"),
        "Machine": ("device", "gpus", "precision", "threads", "workers"),
        "ClearML": ("use_clearml", "clearml_project", "clearml_task_name"),
    }

    data: Path = Field(description="folder with the classes: DATA/<class>/cropped/*")
    merge: list[str] = Field(
        default=[], description="FROM=TO: crops of class folder FROM belong to class TO"
    )
    exclude: list[str] = Field(
        default=[], description="pattern of class folders or CLASS/FILE to leave out: 'group*'"
    )
    model_id: str = Field("vit_large_patch16_dinov3.lvd1689m", description="timm backbone")
    pretrained: bool = Field(True, description="start from the backbone's published weights")
    weights: Path | None = Field(
        None, description="local file with the backbone's weights: .pth, .pt, .safetensors"
    )
    emb_dim: int = Field(128, ge=2, description="length of the embedding")
    head_norm: Literal["batch", "layer"] = Field(
        "batch", description="normalisation inside the head; layer: for very small batches"
    )
    img_size: int = Field(224, ge=16, description="side of the square canvas, pixels")
    freeze_backbone: bool = Field(False, description="train the head only")
    feature_views: int = Field(
        8,
        ge=0,
        description="with a frozen backbone: augmented views of each crop whose features are "
        "computed once and kept on disk; 0: run the backbone in every epoch",
    )
    feature_gb: float = Field(8.0, gt=0, description="most disk space for kept features, GB")
    backbone_lr: float = Field(
        0.0, ge=0, description="learning rate of the backbone; 0: lr / 5 if pretrained, else lr"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each backbone layer relative to the next"
    )
    loss: Literal["arcface", "cosface"] = Field("arcface", description="margin loss")
    scale: float = Field(30.0, gt=0, description="s of the margin loss")
    margin: float = Field(0.30, ge=0, le=1, description="m of the margin loss")
    margin_warmup: float = Field(
        0.0, ge=0, le=1, description="share of the run in which m grows from 0; helps from scratch"
    )
    sub_centers: int = Field(
        1,
        ge=1,
        description="centres per class; 3 keeps mislabelled crops apart, lists them: outliers.csv",
    )
    aug: Literal["none", "light", "tools"] = Field(
        "tools", description="augmentation: none, light (keeps orientation), tools (any angle)"
    )
    crop_mode: Literal["bbox", "mask", "mix"] = Field(
        "bbox", description="background of the crops: kept, painted over, or painted now and then"
    )
    crop_margin: float = Field(
        0.1,
        ge=0,
        le=4,
        description="context around the object in the crop files, as a share of its longer side; "
        "the annotator cuts crops with the same",
    )
    mix_mask_p: float = Field(0.4, ge=0, le=1, description="how often `mix` paints the background")
    auto_generate_masks: bool = Field(
        False, description="make missing masks with SAM-2 before the training (crop_mode mask, mix)"
    )
    sam2_cfg: str = Field(
        "", description="configuration of the sam2 package: configs/sam2.1/sam2.1_hiera_l.yaml"
    )
    sam2_ckpt: str = Field(
        "", description="its .pt checkpoint; without sam2_cfg a Hugging Face id or folder"
    )
    val_split: float = Field(0.2, ge=0, lt=1, description="share for validation")
    test_split: float = Field(0.1, ge=0, lt=1, description="share for the test")
    min_per_class: int = Field(10, ge=1, description="fewer images in a class are an error")
    max_refs_per_class: int = Field(0, ge=0, description="references per class; 0: no limit")
    sub_prototypes: int = Field(
        0, ge=0, description="k-means centres per class in prototypes.npz; 0: centroids only"
    )
    false_rejections: float = Field(
        0.02, ge=0, lt=1, description="share of true objects that `unknown` may turn away"
    )
    cache_gb: float = Field(4.0, ge=0, description="memory for decoded pictures, GB")
    epochs: int = Field(15, ge=1, description="passes over the training split")
    steps: int = Field(0, ge=0, description="optimizer steps; 0: as many as the epochs need")
    batch_size: int = Field(64, ge=2, description="samples per step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup: int = Field(
        50, ge=0, description="steps of linear warm-up before the cosine; at most a tenth of all"
    )
    eval_every: int = Field(1, ge=0, description="epochs between validations; 0: at the end only")
    save_every: int = Field(
        5, ge=0, description="epochs between checkpoints that stay (checkpoint_epXXX.pth); 0: none"
    )
    keep_every: int = Field(0, json_schema_extra={"hidden": True})
    seed: int = Field(42, ge=0, description="seed of weights, splits, order and augmentation")

    @model_validator(mode="after")
    def _splits_leave_something(self) -> EmbedderConfig:
        if self.val_split + self.test_split >= 1:
            raise ValueError("val_split + test_split must leave something to train on")
        return self

    def image_spec(self) -> ImageSpec:
        """The canvas that training, export and runtime share."""
        return ImageSpec(self.img_size, self.img_size, anchor="center")

    def crop_spec(self) -> CropSpec:
        """How the runtime cuts crops for this model; `mix` promises to do without masks."""
        return CropSpec(self.crop_margin, "mask" if self.crop_mode == "mask" else "keep")

    def mask_share(self) -> float:
        """Probability that a training picture's background is painted over."""
        return {"bbox": 0.0, "mask": 1.0, "mix": self.mix_mask_p}[self.crop_mode]

    def in_steps(self, samples: int) -> EmbedderConfig:
        """The same run counted in optimizer steps, as the training loop wants it.

        Args:
            samples: size of the training split.
        """
        epoch = self.epoch_steps(samples)
        steps = self.steps or epoch * self.epochs
        return self.model_copy(
            update={
                "steps": steps,
                "warmup": min(self.warmup, steps // 10),
                "eval_every": self.eval_every * epoch,
                "save_every": epoch,
                "keep_every": self.save_every * epoch,
                # Reading a feature costs less than handing it from one process to another.
                "workers": 0 if self.keeps_features() else self.workers,
            }
        )

    def epoch_steps(self, samples: int) -> int:
        """Optimizer steps that are called an epoch: nearest to a pass over `samples` crops."""
        return max(1, round(samples / self.batch_size))

    def keeps_features(self) -> bool:
        """Say whether features of a frozen backbone are computed once and kept."""
        return self.freeze_backbone and self.feature_views > 0
