"""Options of the training of the compact segmenter."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tk.train.run.config import TrainConfig


class SegmenterConfig(TrainConfig):
    """Options of `tk train segmenter`."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Architecture": ("arch",),
        **TrainConfig.sections,
    }

    arch: Literal["compact"] = Field(
        "compact", description="compact or sam2; each has its own options"
    )
    size: int = Field(640, ge=64, multiple_of=32, description="side of the canvas in pixels")
    margin: float = Field(0.1, ge=0, le=1, description="frame around a box, share of its long side")
    jitter: float = Field(0.06, ge=0, lt=0.5, description="largest error of a training box")
    val_split: float = Field(0.1, ge=0, lt=1, description="share of the images held out")
    colour: float = Field(0.2, ge=0, le=1, description="strength of random colour changes")
    ram_gb: float = Field(2.0, ge=0, description="images kept in memory; the others are read again")

    steps: int = Field(850, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(16, ge=1, description="objects per step")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
