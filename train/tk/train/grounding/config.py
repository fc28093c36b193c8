"""Options of the training of GroundingDINO."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tk.train.run.config import TrainConfig

SMALL = "small"

FINE_TUNING: dict[str, Any] = {
    "size": 800,
    "steps": 1000,
    "batch_size": 4,
    "lr": 1e-4,
    "weight_decay": 1e-4,
    "clip": 0.1,
    "backbone_lr": 0.1,
    "dense_weight": 0.0,
}
"""Defaults when trained weights are the start: their authors' learning rates and loss."""


class GroundingConfig(TrainConfig):
    """Options of `tk train detector --arch grounding-dino`."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Architecture": ("arch", "model", "half"),
        "Phrases": (
            *("single_class", "any_word", "any_share", "word_share", "subset_share", "shuffle"),
        ),
        "Views": ("size", "val_split", "ram_gb", "rotate", "scale", "colour", "mirror"),
        **TrainConfig.sections,
    }

    arch: Literal["grounding-dino"] = Field(
        "grounding-dino", description="compact or grounding-dino; each has its own options"
    )
    model: str = Field(
        SMALL, description="hub id or folder to start from; small: a small one, random weights"
    )
    half: bool = Field(False, description="write OUT/model in float16, half the size")
    size: int = Field(
        256, ge=64, multiple_of=32, description="side of the canvas in pixels; fine-tuning: 800"
    )
    val_split: float = Field(0.1, ge=0, lt=1, description="share of the images held out")
    ram_gb: float = Field(2.0, ge=0, description="images kept in memory; the others are read again")
    rotate: float = Field(10.0, ge=0, le=180, description="largest random turn, degrees")
    scale: float = Field(1.15, ge=1, description="largest random factor of size")
    colour: float = Field(0.5, ge=0, le=1, description="strength of random colour changes")
    mirror: bool = Field(True, description="mirror at random")

    single_class: str = Field("", description="give every object this one class")
    any_word: str = Field("", description="a word that names every object, `tool` for example")
    any_share: float = Field(
        0.1, ge=0, le=1, description="share of the samples whose prompt is --any-word alone"
    )
    word_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of the samples with last words as phrases: "
        "`wrench` for `open-end wrench` and all other wrenches",
    )
    subset_share: float = Field(
        0.3, ge=0, le=1, description="share of the samples that ask for some of the phrases only"
    )
    shuffle: bool = Field(True, description="shuffle the phrases of a training prompt")

    dense_weight: float = Field(
        1.0,
        ge=0,
        description="weight of what random weights need beside the published loss: one-to-many "
        "losses on queries, places of the encoder and backbone, contrast of words; fine-tuning: 0",
    )
    backbone_lr: float = Field(
        1.0,
        ge=0,
        description="factor of the learning rate of picture and text backbone; fine-tuning: 0.1; "
        "0 freezes them",
    )
    steps: int = Field(4000, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(16, ge=1, description="images per step")
    lr: float = Field(1.5e-3, gt=0, description="peak learning rate; fine-tuning: 1e-4")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("model", SMALL) != SMALL:
            return FINE_TUNING | values
        return values
