"""Options of `tk train ssl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tk.train.run.config import TrainConfig
from tk.train.run.folder import FileNames

SMALL: dict[str, Any] = {
    "batch_size": 64,
    "lr": 2e-3,
    "weight_decay_end": 0.04,
    "momentum": 0.99,
    "out_dim": 256,
    "head_hidden_dim": 256,
    "bottleneck_dim": 64,
    "head_norm": "batch",
    "adam_eps": 1e-12,
    "vit_init": "xavier",
    "aug_statistics": "data",
}
"""`--preset small`: what differs from the defaults, for thousands of pictures instead of millions.

Found on 1,437 pictures of 8 x 8 pixels; see docs/pretraining.md for what each of it does there.
"""

PRESETS: dict[str, dict[str, Any]] = {"none": {}, "small": SMALL}


class SslConfig(TrainConfig):
    """Options of DINO and iBOT; `eval_every`, `save_every` and `keep_every` count epochs here."""

    may_differ: ClassVar[frozenset[str]] = TrainConfig.may_differ | {
        # Compared by what they hold; how data are read; what is written at the end; metadata.
        *("data", "train_dir", "probe_dir", "dataset_pin_memory", "dataset_persistent_workers"),
        *("dataset_cache_gb", "export_backbone", "weights", "pretrained", "preset", "compile"),
        "shard",
        *("experiment_name", "experiment_tag", "experiment_notes", "stream"),
    }

    aliases: ClassVar[dict[str, str]] = {
        "output_dir": "out",
        "learning_rate": "lr",
        "num_workers": "workers",
        "dataset_batch_size": "batch_size",
        "dataset_num_workers": "workers",
        "experiment_tags": "experiment_tag",
        "head_hidden": "head_hidden_dim",
        "patch_loss_weight": "ibot_weight",
        "center_momentum": "centering_momentum",
    }

    file_sections: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("dataset", "dataloader"), "dataset_"),
        **dict.fromkeys(("augmentation", "augmentations"), "aug_"),
        **dict.fromkeys(("checkpoint", "checkpoints", "checkpointing"), "checkpoint_"),
        "experiment": "experiment_",
    }

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Run": (
            *("train_dir", "out", "algorithm", "preset", "config", "resume", "overwrite", "seed"),
            *("export_backbone", "probe_dir"),
        ),
        "Model": (
            *("image_size", "patch_size", "vit_embed_dim", "vit_depth", "vit_num_heads"),
            *(
                "vit_mlp_ratio",
                "vit_init",
                "drop_path",
                "model",
                "pretrained",
                "weights",
                "freeze_blocks",
            ),
            "freeze_backbone_epochs",
        ),
        "Head": (
            *("out_dim", "head_hidden_dim", "bottleneck_dim", "head_layers", "head_norm"),
            *("norm_last_layer", "freeze_last_layer_epochs"),
        ),
        "Loss": (
            *("student_temp", "teacher_temp", "teacher_temp_start", "teacher_temp_epochs"),
            *("centering", "centering_momentum", "sinkhorn_iterations", "koleo_weight"),
        ),
        "iBOT": (
            *("ibot_weight", "shared_head", "patch_out_dim", "mask_probability", "mask_ratio"),
            "mask_aspect",
        ),
        "Training": (
            *("epochs", "steps", "batch_size", "accumulate", "lr", "lr_end", "warmup_epochs"),
            *("weight_decay", "weight_decay_end", "layer_decay", "momentum", "momentum_end"),
            *("clip", "adam_eps", "eval_every", "save_every", "keep_every"),
        ),
        "Data": ("dataset_pin_memory", "dataset_persistent_workers", "dataset_cache_gb"),
        "Augmentation": (
            *("aug_global_scale", "aug_local_scale", "aug_local_crops", "aug_local_size"),
            *("aug_hflip_prob", "aug_vflip_prob", "aug_rotate_prob", "aug_color_jitter_prob"),
            *("aug_brightness", "aug_contrast", "aug_saturation", "aug_hue", "aug_grayscale_prob"),
            *("aug_gaussian_blur_prob", "aug_gaussian_blur_sigma", "aug_solarize_prob"),
            *("aug_statistics", "aug_mean", "aug_std"),
        ),
        "Checkpoints": (
            *("checkpoint_last_name", "checkpoint_best_name", "checkpoint_history_file"),
        ),
        "Experiment": ("experiment_name", "experiment_tag", "experiment_notes", "stream"),
        "Machine": ("device", "gpus", "shard", "precision", "compile", "threads", "workers"),
        "ClearML": ("use_clearml", "clearml_project", "clearml_task_name"),
    }

    data: Path = Field(Path(), json_schema_extra={"hidden": True})
    train_dir: list[Path] = Field(
        min_length=1, description="folder with pictures, searched whole; repeatable"
    )
    algorithm: Literal["dino", "ibot"] = Field(
        "dino", description="dino: whole crops; ibot: masked patches as well"
    )
    preset: Literal["none", "small"] = Field(
        "none", description="small: values for data sets of thousands of pictures"
    )
    export_backbone: Path | None = Field(
        None, description="file for the teacher's backbone; loads with load_dinov2_backbone"
    )
    probe_dir: Path | None = Field(
        None,
        description="labelled pictures, <class>/... : kNN and linear figures, and kNN says what "
        "the best checkpoint is (without it: the effective rank RankMe)",
    )

    image_size: int = Field(224, ge=8, description="side of the global crops, pixels")
    patch_size: int = Field(16, ge=1, description="side of a patch, pixels")
    vit_embed_dim: int = Field(384, ge=8, description="width of the transformer")
    vit_depth: int = Field(12, ge=1, description="number of blocks")
    vit_num_heads: int = Field(0, ge=0, description="attention heads; 0: width / 64")
    vit_mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLPs / width")
    vit_init: Literal["normal", "xavier"] = Field(
        "normal",
        description="how weights are drawn: deviation 0.02, or as wide as layers are narrow; "
        "xavier for widths below 384",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the student")
    model: str = Field(
        "", description="timm ViT instead, DINOv2 and DINOv3 included; its patch size and width"
    )
    pretrained: bool = Field(False, description="start from timm's published weights of --model")
    weights: Path | None = Field(
        None, description="start from a local file: .pt, .pth, .safetensors"
    )
    freeze_blocks: int = Field(
        0, ge=0, description="so many first blocks, and the patch embedding, stay as they are"
    )
    freeze_backbone_epochs: float = Field(
        0.0, ge=0, description="epochs in which only the heads learn; for released weights"
    )

    out_dim: int = Field(65536, ge=2, description="prototypes K of the head")
    head_hidden_dim: int = Field(2048, ge=1, description="width of the head's hidden layers")
    bottleneck_dim: int = Field(256, ge=1, description="width before the last layer")
    head_layers: int = Field(3, ge=1, description="layers before the bottleneck's end")
    head_norm: Literal["none", "batch"] = Field(
        "none", description="normalisation in the heads; batch helps on small data, one process"
    )
    norm_last_layer: bool = Field(True, description="last layer's weights keep unit length")
    freeze_last_layer_epochs: float = Field(
        1.0, ge=0, description="epochs in which the last layer does not learn"
    )

    student_temp: float = Field(0.1, gt=0, description="temperature of the student")
    teacher_temp: float = Field(0.04, gt=0, description="temperature of the teacher")
    teacher_temp_start: float = Field(0.04, gt=0, description="... at the start of the run")
    teacher_temp_epochs: float = Field(0.0, ge=0, description="epochs of its linear warm-up")
    centering: Literal["mean", "sinkhorn", "none"] = Field(
        "mean", description="what keeps the teacher from one answer for all; none: to see it fail"
    )
    centering_momentum: float = Field(0.9, ge=0, lt=1, description="of the mean centre")
    sinkhorn_iterations: int = Field(3, ge=1, description="iterations of Sinkhorn-Knopp")
    koleo_weight: float = Field(0.0, ge=0, description="weight of KoLeo; DINOv2: 0.1")

    ibot_weight: float = Field(1.0, ge=0, description="weight of the patch loss")
    shared_head: bool = Field(True, description="patches and crops share one head")
    patch_out_dim: int = Field(0, ge=0, description="prototypes of a separate patch head; 0: K")
    mask_probability: float = Field(0.5, gt=0, le=1, description="share of crops with masks")
    mask_ratio: tuple[float, float] = Field(
        (0.1, 0.5), description="share of masked patches in such a crop, from and to"
    )
    mask_aspect: float = Field(0.3, gt=0, le=1, description="narrowest block of a mask")

    epochs: int = Field(100, ge=1, description="passes over the pictures")
    steps: int = Field(0, ge=0, description="optimizer steps; 0: as many as the epochs need")
    batch_size: int = Field(64, ge=2, description="pictures per step, over all processes")
    lr: float = Field(
        0.0, ge=0, description="peak learning rate; 0: 0.0005 x batch size / 256, as DINO"
    )
    lr_end: float = Field(1e-6, ge=0, description="learning rate at the end")
    warmup: int = Field(0, json_schema_extra={"hidden": True})
    warmup_epochs: float = Field(
        10.0, ge=0, description="epochs of linear warm-up; at most a tenth of all"
    )
    weight_decay: float = Field(0.04, ge=0, description="AdamW weight decay, not of biases, norms")
    weight_decay_end: float = Field(0.4, ge=0, description="... at the end, on a cosine")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each block relative to the next"
    )
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher, at the start")
    momentum_end: float = Field(1.0, ge=0, le=1, description="... at the end, on a cosine")
    clip: float = Field(3.0, gt=0, description="largest norm of the gradient")
    adam_eps: float = Field(1e-8, gt=0, description="epsilon of AdamW")
    ema_decay: float = Field(0.0, json_schema_extra={"hidden": True})
    eval_every: int = Field(10, ge=0, description="epochs between probes; 0: at the end only")
    save_every: int = Field(1, ge=0, description="epochs between checkpoints; 0: at the end only")
    keep_every: int = Field(0, ge=0, description="epochs between checkpoints that stay; 0: none")
    seed: int = Field(42, ge=0, description="seed of weights, order and augmentation")
    compile: bool = Field(False, description="torch.compile of both backbones")

    shard: bool = Field(
        False,
        description="several processes divide weights, gradients and optimizer state among them "
        "(FSDP), for models too large for one GPU",
    )

    dataset_pin_memory: bool = Field(True, description="page-locked batches, where there is a GPU")
    dataset_persistent_workers: bool = Field(
        True, description="workers live for the whole run (they always do here)"
    )
    dataset_cache_gb: float = Field(4.0, ge=0, description="memory for decoded pictures, GB")

    aug_global_scale: tuple[float, float] = Field(
        (0.4, 1.0), description="share of the area that a global crop shows, from and to"
    )
    aug_local_scale: tuple[float, float] = Field(
        (0.05, 0.4), description="share of the area that a local crop shows, from and to"
    )
    aug_local_crops: int = Field(8, ge=0, description="local crops per picture")
    aug_local_size: int = Field(
        0, ge=0, description="their side, pixels; 0: 3/7 of the image size, in whole patches"
    )
    aug_hflip_prob: float = Field(0.5, ge=0, le=1, description="mirrored")
    aug_vflip_prob: float = Field(0.0, ge=0, le=1, description="upside down")
    aug_rotate_prob: float = Field(0.0, ge=0, le=1, description="turned by quarters")
    aug_color_jitter_prob: float = Field(0.8, ge=0, le=1, description="other colours")
    aug_brightness: float = Field(0.4, ge=0, le=1, description="largest change of brightness")
    aug_contrast: float = Field(0.4, ge=0, le=1, description="largest change of contrast")
    aug_saturation: float = Field(0.2, ge=0, le=1, description="largest change of saturation")
    aug_hue: float = Field(0.1, ge=0, le=0.5, description="largest change of hue")
    aug_grayscale_prob: float = Field(0.2, ge=0, le=1, description="without colours")
    aug_gaussian_blur_prob: float | None = Field(
        None,
        ge=0,
        le=1,
        description="blurred (default: first global crops 1, second 0.1, local ones 0.5)",
    )
    aug_gaussian_blur_sigma: tuple[float, float] = Field(
        (0.1, 2.0), description="deviation of the blur, pixels, from and to"
    )
    aug_solarize_prob: float = Field(0.2, ge=0, le=1, description="solarised second global crops")
    aug_statistics: Literal["model", "data"] = Field(
        "model",
        description="mean and deviation of the channels: what the model is used to (the own one: "
        "ImageNet's), or measured",
    )
    aug_mean: tuple[float, float, float] | None = Field(
        None, description="mean of the channels, 0..1, instead"
    )
    aug_std: tuple[float, float, float] | None = Field(
        None, description="deviation of the channels, 0..1, instead"
    )

    checkpoint_last_name: str = Field("checkpoint_last.pt", description="file of the last state")
    checkpoint_best_name: str = Field("checkpoint_best.pt", description="file of the best state")
    checkpoint_history_file: str = Field("metrics.jsonl", description="file of the figures")

    experiment_name: str = Field("", description="name of the experiment")
    experiment_tag: list[str] = Field(default=[], description="label of the run; repeatable")
    experiment_notes: str = Field("", description="notes, kept with the run")
    stream: str = Field("", description="what the pictures show (face, hand_left, ...); metadata")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Put the values of the preset under those that were given."""
        if not isinstance(values, dict):
            return values
        given = {cls.aliases.get(name, name): value for name, value in values.items()}
        filled = PRESETS.get(given.get("preset", "none"), {}) | given
        folders = filled.get("train_dir")
        return {"data": folders[0], **filled} if isinstance(folders, list) and folders else filled

    @model_validator(mode="after")
    def _sizes_fit(self) -> SslConfig:
        if not self.model:
            self._check_own_vit()
        elif self.pretrained and self.weights:
            raise ValueError("--pretrained or --weights: a run starts from one of them")
        if self.local_size(self.patch_size) > self.image_size:
            raise ValueError("--aug-local-size: local crops are not larger than --image-size")
        return self

    def _check_own_vit(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError("--image-size must be a multiple of --patch-size")
        if self.aug_local_size % self.patch_size:
            raise ValueError("--aug-local-size must be a multiple of --patch-size")
        if self.vit_embed_dim % self.heads():
            raise ValueError("--vit-embed-dim must be a multiple of --vit-num-heads")
        if self.pretrained:
            raise ValueError("--pretrained needs the --model of timm whose weights to start from")

    @model_validator(mode="after")
    def _ranges_rise(self) -> SslConfig:
        for name in ("aug_global_scale", "aug_local_scale", "mask_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"--{name.replace('_', '-')}: 0 < from <= to <= 1")
        if (self.aug_mean is None) != (self.aug_std is None):
            raise ValueError("--aug-mean and --aug-std belong together")
        if self.aug_std and min(self.aug_std) <= 0:
            raise ValueError("--aug-std must be above 0")
        return self

    @model_validator(mode="after")
    def _shard_fits(self) -> SslConfig:
        if self.shard and (self.compile or self.ema_decay):
            raise ValueError("--shard does not go together with --compile or a moving average")
        return self

    @model_validator(mode="after")
    def _files_differ(self) -> SslConfig:
        names = self.file_names()
        files = [names.last, names.best, names.metrics, names.config, "artifacts.json", "train.log"]
        for name in files[:3]:
            if Path(name).name != name or name.startswith("."):
                raise ValueError(f"--checkpoint-...: {name!r} is not the plain name of a file")
        if len(set(files)) < len(files):
            raise ValueError("--checkpoint-...: every file of the run needs a name of its own")
        for name in files[:2]:
            if Path(name).suffix not in (".pt", ".pth"):
                raise ValueError(f"--checkpoint-...: {name!r} must end with .pt or .pth")
        return self

    def file_names(self) -> FileNames:
        """Names of the files in the run folder."""
        return FileNames(
            self.checkpoint_last_name,
            self.checkpoint_best_name,
            self.checkpoint_history_file,
            "params.json",
        )

    def pins_memory(self) -> bool:
        """Say whether batches are made in page-locked memory, where there is a GPU."""
        return self.dataset_pin_memory and super().pins_memory()

    def heads(self) -> int:
        """Attention heads of the own transformer."""
        return self.vit_num_heads or max(1, self.vit_embed_dim // 64)

    def answer_sizes(self) -> list[int]:
        """Prototypes that class tokens, and with iBOT patches, are told by."""
        if self.algorithm == "dino":
            return [self.out_dim]
        own = 0 if self.shared_head else self.patch_out_dim
        return [self.out_dim, own or self.out_dim]

    def local_size(self, patch_size: int) -> int:
        """Side of the local crops in pixels: what was asked for, else 3/7 in whole patches."""
        patches = max(1, round(self.image_size * 3 / 7 / patch_size))
        return self.aug_local_size or patches * patch_size

    def epoch_steps(self, samples: int) -> int:
        """Optimizer steps that are called an epoch: nearest to a pass over `samples` pictures."""
        return max(1, round(samples / self.batch_size))

    def in_steps(self, samples: int) -> SslConfig:
        """The same run counted in optimizer steps, as the training loop wants it.

        Args:
            samples: number of training pictures.
        """
        epoch = self.epoch_steps(samples)
        steps = self.steps or epoch * self.epochs
        return self.model_copy(
            update={
                "steps": steps,
                "lr": self.lr or 5e-4 * self.batch_size / 256,
                "warmup": min(round(self.warmup_epochs * epoch), steps // 10),
                "eval_every": self.eval_every * epoch,
                "save_every": self.save_every * epoch,
                "keep_every": self.keep_every * epoch,
            }
        )
