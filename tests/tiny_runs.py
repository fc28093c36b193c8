"""A tiny but real run of `tk train distill`, for all who read what such a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tk.train.data.digits import enlarge
from tk.train.distill.config import DistillConfig
from tk.train.distill.pipeline import train_distill

BACKBONE = "mobilevit_xs"
"""384 features, as many as DINOv2-S has, of 1.9 million weights (random here)."""


def write_crops(folder: Path, count: int = 24, *, size: int = 32, classes: int = 4) -> Path:
    """Write scikit-learn's digits 0 to 3, `count` of each, as `folder/<class>/<digit>.png`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(classes):
        for index in np.flatnonzero(digits.target == label)[:count]:
            picture = enlarge(np.rint(digits.images[index] * (255 / 16)).astype(np.uint8), size)
            # Names without an underscore: every picture is a source image of its own.
            path = folder / f"digit {label}" / f"n{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), picture)
    return folder


def tiny_config(data: Path, out: Path, **changes: Any) -> DistillConfig:
    """Options of a run of a few seconds; `changes` win."""
    values: dict[str, Any] = {
        "model_id": BACKBONE,
        "pretrained": False,
        "img_size": 32,
        "seeds": 2,
        "teacher_epochs": 6,
        "distill_epochs": 4,
        "device": "cpu",
    }
    return DistillConfig(data=data, out=out, **(values | changes))


def write_tiny_run(folder: Path, **changes: Any) -> Path:
    """Make `folder/crops` and run the pipeline on them.

    Returns:
        `folder/run`, with `results.json`, `backbone.pth` and `models/`: heads of 384 features and
        4 classes, so of exactly the seed's 1540, 57796 and 26852 parameters.
    """
    return train_distill(tiny_config(write_crops(folder / "crops"), folder / "run", **changes))
