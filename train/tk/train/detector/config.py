"""Options of the training of the compact detector."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tk.train.run.config import TrainConfig


class DetectorConfig(TrainConfig):
    """Options of `tk train detector`."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Architecture": ("arch",),
        **TrainConfig.sections,
    }

    arch: Literal["compact"] = Field(
        "compact", description="compact or grounding-dino; each has its own options"
    )
    size: int = Field(320, ge=64, multiple_of=32, description="side of the canvas in pixels")
    single_class: str = Field("", description="give every object this one class")
    val_split: float = Field(0.1, ge=0, lt=1, description="share of the images held out")
    rotate: float = Field(10.0, ge=0, le=180, description="largest random turn, degrees")
    scale: float = Field(1.15, ge=1, description="largest random factor of size")
    colour: float = Field(0.5, ge=0, le=1, description="strength of random colour changes")
    mirror: bool = Field(True, description="mirror at random")
    ram_gb: float = Field(2.0, ge=0, description="images kept in memory; the others are read again")

    steps: int = Field(400, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(16, ge=1, description="images per step")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
