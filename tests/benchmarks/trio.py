"""Three tiny models with random weights, as checkpoints, bundles and a gallery."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from tk.runtime.gallery.gallery import Gallery
from tk.runtime.preprocess import CropSpec, ImageSpec

CLASSES = ("axe", "saw", "ключ")
CROP = CropSpec(margin=0.1, background="mask")
DIMENSION = 16


def write_images(folder: Path) -> None:
    """Six smooth random pictures of different sizes, and one file that is no picture."""
    random = np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for index in range(6):
        coarse = random.integers(0, 255, (6, 9, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (250 + 40 * index, 220), interpolation=cv2.INTER_CUBIC)
        place = folder / ("sub" if index % 2 else ".")
        cv2.imwrite(str(place / f"{index}.png"), picture)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")


def write_runs(folder: Path) -> None:
    """Checkpoints of a detector, a segmenter and an embedder with random weights."""
    from tk.train.detector.model import CompactDetector
    from tk.train.embedder.model import EmbedNet
    from tk.train.segmenter.model import CompactSegmenter

    torch.manual_seed(0)
    detector = CompactDetector(1, 96, 96)
    heat = detector.heat[-1]
    assert isinstance(heat, nn.Conv2d) and heat.bias is not None
    nn.init.normal_(heat.weight, std=0.5)
    nn.init.constant_(heat.bias, 0.5)  # else every cell is background
    _save(folder / "detector", "detector", detector, ImageSpec(96, 96), None, ("tool",), {})
    segmenter = CompactSegmenter(0.1)
    for vote in segmenter.votes:
        assert isinstance(vote, nn.Conv2d)
        nn.init.normal_(vote.weight, std=2.0)
    spec = ImageSpec(96, 96)
    _save(folder / "segmenter", "segmenter", segmenter, spec, None, ("tool",), {"margin": 0.1})
    config = {"model_id": "resnet10t", "emb_dim": DIMENSION, "pretrained": False}
    embedder = EmbedNet("resnet10t", DIMENSION, 64)
    _save(folder / "embedder", "embedder", embedder, ImageSpec(64, 64), CROP, CLASSES, config)


def _save(
    run: Path,
    task: str,
    model: nn.Module,
    image: ImageSpec,
    crop: CropSpec | None,
    classes: tuple[str, ...],
    config: dict[str, Any],
) -> None:
    from tk.train.run.checkpoint import save_checkpoint

    state = {
        "task": task,
        "config": json.dumps(config),
        "classes": json.dumps(classes),
        "image_spec": json.dumps(asdict(image)),
        "crop_spec": json.dumps(asdict(crop)) if crop else "",
        "step": 0,
        "epoch": 0,
        "model": model.eval().state_dict(),
    }
    save_checkpoint(run / "checkpoint_best.pth", state)


def write_gallery(folder: Path, embeddings: np.ndarray[Any, Any]) -> None:
    """Prototypes taken from what the embedder makes of real crops, one class each."""
    rows = embeddings[: len(CLASSES)].astype(np.float32)
    gallery = Gallery(CLASSES, rows, rows, np.arange(len(rows)), crop=CROP)
    gallery.save(folder)
