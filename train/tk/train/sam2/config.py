"""Options of the training of SAM-2."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tk.train.run.config import TrainConfig

SMALL = "small"
"""Value of `model` that asks for random weights."""

FOR_RANDOM_WEIGHTS: dict[str, Any] = {
    "lr": 1e-3,
    "batch_size": 2,
    "ema_decay": 0.995,
    "focal_weight": 2.0,
    "focal_alpha": 0.5,
    "focal_gamma": 0.0,
    "iou_weight": 0.2,
    "all_masks": 1.0,
    "inside_first": 0.1,
    "fill_box": True,
}
"""Defaults with `--model small`: there is nothing yet to be gentle with."""


class Sam2Config(TrainConfig):
    """Options of `tk train segmenter --arch sam2`."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Architecture": ("arch", "model", "size", "freeze_encoder", "half"),
        "Samples": (
            *("objects", "jitter", "turn", "zoom", "warped", "colour"),
            *("val_split", "ram_gb"),
        ),
        "Loss": (
            *("focal_weight", "focal_alpha", "focal_gamma"),
            *("dice_weight", "iou_weight", "object_weight"),
            *("all_masks", "inside_first", "fill_box", "loss_scale"),
        ),
        **TrainConfig.sections,
    }

    arch: Literal["sam2"] = Field("sam2", description="compact or sam2; each has its own options")
    model: str = Field(
        SMALL,
        description="hub id or folder to start from (OUT/model of another run too); small: a small "
        "one, random weights",
    )
    size: int = Field(
        0,
        ge=0,
        multiple_of=32,
        description="side of the canvas in pixels; 0: that of the model, 384 for small",
    )
    freeze_encoder: bool = Field(
        False,
        description="train prompt encoder and mask decoder alone: less memory, and the features "
        "stay as released; not for --model small",
    )
    half: bool = Field(False, description="write OUT/model in float16, half the size")

    objects: int = Field(4, ge=1, description="objects of a picture in one sample")
    jitter: float = Field(
        0.06, ge=0, lt=0.5, description="largest error of a training box, share of its sides"
    )
    turn: float = Field(15.0, ge=0, le=180, description="largest rotation, degrees")
    zoom: float = Field(1.3, ge=1, le=4, description="largest factor of size, up or down")
    warped: float = Field(
        0.5, ge=0, le=1, description="share of the samples that are turned and zoomed"
    )
    colour: float = Field(0.2, ge=0, le=1, description="strength of random colour changes")
    val_split: float = Field(0.1, ge=0, lt=1, description="share of the images held out")
    ram_gb: float = Field(2.0, ge=0, description="images kept in memory; the others are read again")

    focal_weight: float = Field(20.0, ge=0, description="of the focal loss of a mask; 2 if small")
    focal_alpha: float = Field(
        0.25,
        ge=0,
        le=1,
        description="weight of object pixels in the focal loss, the others weigh the rest of 1; "
        "0.5 if small",
    )
    focal_gamma: float = Field(
        2.0,
        ge=0,
        description="how little easy pixels count in the focal loss; 0: all alike, the cross "
        "entropy; 0 if small",
    )
    dice_weight: float = Field(1.0, ge=0, description="of the Dice loss of a mask")
    iou_weight: float = Field(
        1.0, ge=0, description="of the error of the predicted IoU; 0.2 if small"
    )
    object_weight: float = Field(1.0, ge=0, description="of the object score")
    all_masks: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the mask loss that all three masks of a box have, not the best "
        "alone: with little data the model does not learn to tell which is best; 1 if small",
    )
    inside_first: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps in which only pixels of the box and its margin count, "
        "where masks are drawn: random weights then first learn what an object is; afterwards "
        "half of the Dice loss counts all pixels, which teaches which object the box means; 0: "
        "all pixels always; 0.1 if small",
    )
    fill_box: bool = Field(
        False,
        description="the last of the three masks of a box learns to fill the box, not the object: "
        "random weights do not find out by themselves that the box matters; on if small",
    )
    loss_scale: Literal[1, 2, 4] = Field(
        1,
        description="masks are compared at this multiple of the decoder's resolution; 4: the "
        "canvas, as SAM-2 was trained, at more memory",
    )

    steps: int = Field(2000, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(4, ge=1, description="pictures per step; 2 if small")
    lr: float = Field(2e-5, gt=0, description="peak learning rate; 1e-3 if --model small")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")

    @model_validator(mode="before")
    @classmethod
    def _bold(cls, values: Any) -> Any:
        """Random weights want other defaults than released ones."""
        if isinstance(values, dict) and values.get("model", SMALL) == SMALL:
            return {**FOR_RANDOM_WEIGHTS, **values}
        return values

    @model_validator(mode="after")
    def _random_weights_learn(self) -> Sam2Config:
        if self.model == SMALL and self.freeze_encoder:
            raise ValueError("--freeze-encoder with --model small would keep random features")
        return self
