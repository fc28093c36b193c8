"""Two coloured shapes per picture as COCO data, and a short run on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as PilImage

from tk.train.grounding.config import GroundingConfig


def write_shapes(
    folder: Path, names: Sequence[str] = ("blue box", "red disc"), count: int = 4
) -> Path:
    """Pictures of 160 x 120 (every second upright) with a rectangle and a disc each."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        height, width = (120, 160) if index % 2 == 0 else (160, 120)
        pixels = rng.integers(60, 90, (height, width, 3)).astype(np.uint8)
        x, y = 8 + 3 * index, 12 + 2 * index
        pixels[y : y + 40, x : x + 48] = (30, 90, 240)
        centre = (width - 34, height - 30)
        cv2.circle(pixels, centre, 24, (230, 60, 30), -1)
        disc = [centre[0] - 24, centre[1] - 24, 49, 49]
        for category, bbox in ((1, [x, y, 48, 40]), (2, disc)):
            annotations.append(dict(image_id=index, category_id=category, bbox=bbox))
        images.append(dict(id=index, file_name=f"{index}.png", width=width, height=height))
        PilImage.fromarray(pixels).save(folder / "images" / f"{index}.png")
    categories = [dict(id=index, name=name) for index, name in enumerate(names, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def settings(folder: Path, **changes: Any) -> GroundingConfig:
    """A run of few steps of the small model on `folder/d`."""
    values: dict[str, Any] = dict(
        data=folder / "d", out=folder / "run", size=128, steps=3, batch_size=2, warmup=2,
        threads=1, device="cpu", val_split=0.25, any_word="thing",
    )  # fmt: skip
    return GroundingConfig(**(values | changes))
