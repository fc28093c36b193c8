"""A few bright shapes as COCO data with masks, and a miniature SAM-2 to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from transformers import Sam2Model

from tk.runtime.masks import BoxMask, coco_rle
from tk.train.sam2 import small
from tk.train.sam2.config import Sam2Config


def write_scenes(folder: Path, count: int = 4) -> Path:
    """Pictures of 160 x 120 with a disc and a bar each, annotated by RLE."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(count):
        pixels = rng.integers(40, 80, (120, 160, 3)).astype(np.uint8)
        disc, bar = np.zeros((2, 120, 160), np.uint8)
        cv2.circle(disc, (45, 60 - 5 * index), 24, 1, -1)
        cv2.line(bar, (100, 20), (140, 90 + 5 * index), 1, 16)
        for category, mask in enumerate((disc, bar)):
            pixels[mask > 0] = (240, 220, 60 + 120 * category)
            box = BoxMask(0, 0, mask.astype(bool), 120, 160)
            tight = box.tight_box()
            assert tight is not None
            x0, y0, x1, y1 = (float(v) for v in tight)
            bbox = [x0, y0, x1 - x0, y1 - y0]
            row = dict(image_id=index, category_id=category, bbox=bbox, segmentation=coco_rle(box))
            annotations.append(row)
        images.append(dict(id=index, file_name=f"{index}.png", width=160, height=120))
        PilImage.fromarray(pixels).save(folder / "images" / f"{index}.png")
    categories = [dict(id=0, name="disc"), dict(id=1, name="bar")]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def change_annotations(folder: Path, change: Any) -> None:
    """Apply `change` to every annotation of the data in `folder`."""
    content = json.loads((folder / "annotations.json").read_text())
    for item in content["annotations"]:
        change(item)
    (folder / "annotations.json").write_text(json.dumps(content))


def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `--model small` as small as the library's class goes."""
    monkeypatch.setattr(small, "WIDTHS", (8, 16, 24, 32))
    monkeypatch.setattr(small, "BLOCKS", (1, 1, 2, 1))
    monkeypatch.setattr(small, "WHOLE", (3,))
    monkeypatch.setattr(small, "HIDDEN", 32)


def save_model(folder: Path, seed: int = 0) -> Sam2Model:
    """Write a random model of 128 pixels without an image processor."""
    torch.manual_seed(seed)
    model = small.small_model(128)
    model.save_pretrained(folder)
    return model


def settings(folder: Path, **changes: Any) -> Sam2Config:
    """Options of a run of a few steps on the data in `folder`/d."""
    values: dict[str, Any] = dict(data=folder / "d", out=folder / "run", size=128, objects=2)
    values |= dict(steps=6, batch_size=2, warmup=2, val_split=0.25, ema_decay=0.9)
    return Sam2Config(**(values | dict(threads=1, device="cpu") | changes))
