"""Small runs that several test files share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tk.train.run.folder import RunFolder
from tk.train.ssl.config import SslConfig


@functools.cache
def _digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def write_digits(folder: Path, count: int, *, start: int = 0) -> Path:
    """Write digits of 8 x 8 pixels as `folder/<class>/<index>.png`."""
    images, labels = _digits()
    for index in range(start, start + count):
        path = folder / str(labels[index]) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), images[index])
    return folder


TINY: dict[str, Any] = dict(
    preset="small",
    image_size=16,
    patch_size=4,
    vit_embed_dim=16,
    vit_depth=2,
    vit_num_heads=2,
    out_dim=32,
    head_hidden_dim=32,
    bottleneck_dim=16,
    batch_size=16,
    epochs=3,
    eval_every=1,
    aug_local_crops=2,
    aug_hflip_prob=0.0,
    threads=1,
    device="cpu",
)
"""A transformer of a few thousand weights on pictures of 16 x 16 pixels."""


def config(folder: Path, out: Path, **changes: Any) -> SslConfig:
    """A tiny run on `folder`; `changes` win."""
    return SslConfig(train_dir=[folder], out=out, **(TINY | changes))


def steps_of(settings: SslConfig) -> list[dict[str, Any]]:
    """Records of the optimizer steps."""
    records = RunFolder(settings.out, settings.file_names()).read_metrics()
    return [record for record in records if "event" not in record]


def events_of(settings: SslConfig, event: str) -> list[dict[str, Any]]:
    """Records of one kind of event."""
    records = RunFolder(settings.out, settings.file_names()).read_metrics()
    return [record for record in records if record.get("event") == event]
