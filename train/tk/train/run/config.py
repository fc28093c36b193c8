"""What every training is told: the base of all training configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tk.train.run.folder import FileNames


class Options(BaseModel):
    """Options of a command: the command line and the files of `--config` follow from the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aliases: ClassVar[dict[str, str]] = {}
    """Other spelling -> field, on the command line, in files and in Python."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Titles of `--help` -> fields; fields in none come last."""

    file_sections: ClassVar[dict[str, str]] = {}
    """Section of a configuration file -> how the options in it begin (`augmentation` -> `aug_`)."""

    not_used: ClassVar[dict[str, str]] = {}
    """Keys that files written for other programs have and that say nothing here -> why."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {cls.aliases.get(name, name): value for name, value in values.items()}

    def resolved(self) -> dict[str, Any]:
        """All values as plain JSON types."""
        return self.model_dump(mode="json")


class TrainConfig(Options):
    """Options common to all trainings; an algorithm adds its own and its own defaults."""

    may_differ: ClassVar[frozenset[str]] = frozenset(
        {"out", "resume", "overwrite", "workers", "device", "gpus", "threads"}
        | {"save_every", "keep_every"}
        | {"use_clearml", "clearml_project", "clearml_task_name"}
    )
    """Fields that a resume may change: they do not say what is computed."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Run": ("data", "out", "config", "resume", "overwrite", "seed"),
        "Training": (
            *("steps", "batch_size", "accumulate", "lr", "weight_decay", "warmup", "clip"),
            *("ema_decay", "eval_every", "save_every", "keep_every"),
        ),
        "Machine": ("device", "gpus", "precision", "threads", "workers"),
        "ClearML": ("use_clearml", "clearml_project", "clearml_task_name"),
    }

    data: Path = Field(description="folder with the training data")
    out: Path = Field(description="run folder: config, metrics, checkpoints")
    steps: int = Field(1000, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(32, ge=1, description="samples per step, over all processes")
    accumulate: int = Field(
        1, ge=1, description="parts in which a batch goes through the network, to save memory"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(
        0.05, ge=0, description="AdamW weight decay (not on biases and norms)"
    )
    warmup: int = Field(50, ge=0, description="steps of linear warm-up before the cosine")
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="moving average of the weights, used for results; 0: none"
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="of the forward pass, weights stay float32; auto: bfloat16 where it is fast",
    )
    workers: int = Field(0, ge=0, description="processes that prepare samples")
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0: at the end only")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0: at the end only")
    keep_every: int = Field(
        0, ge=0, description="steps between checkpoints that stay under their own name; 0: none"
    )
    resume: str = Field(
        "",
        description="go on from a checkpoint, or from `last`: checkpoint_last.pth of --out",
    )
    overwrite: bool = Field(False, description="replace a run that is in the run folder")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    gpus: int = Field(
        0, ge=0, description="processes, one per GPU (with --device cpu: CPU processes); 0: one"
    )
    threads: int = Field(0, ge=0, description="CPU threads of PyTorch; 0: its default")

    goes_on: str = Field(
        "go on with --resume last",
        exclude=True,
        json_schema_extra={"hidden": True},
        description="what to say after Ctrl-C; nothing where a command trains within another",
    )

    use_clearml: bool = Field(False, description="send figures to ClearML too")
    clearml_project: str = Field("tk", description="ClearML project")
    clearml_task_name: str = Field("", description="ClearML task; default: name of the run folder")

    def file_names(self) -> FileNames:
        """Names of the files in the run folder."""
        return FileNames()

    def pins_memory(self) -> bool:
        """Say whether batches are made in page-locked memory, where there is a GPU."""
        return self.device != "cpu"
