"""Steps 3 and 5: what a frozen backbone says of every patch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import read_json, sha256_file
from tk.runtime.images import read_image
from tk.runtime.preprocess import Image, ImageSpec, fit, spec_to_json
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import save_encoder
from tk.train.distill.split import Items
from tk.train.embedder.features import cache_features, weights_digest
from tk.train.run.device import choose_device


@dataclass(frozen=True)
class Features:
    """Features of all patches, and the backbone they are of.

    Attributes:
        values: (N, F) float32.
        model_id: timm's name of the backbone.
        img_size: side of its canvas, pixels.
        backbone_sha256: `weights_digest` of it.
    """

    values: NDArray[np.float32]
    model_id: str
    img_size: int
    backbone_sha256: str


def extract_features(
    folder: Path,
    name: str,
    encoder: ImageEncoder,
    spec: ImageSpec,
    items: Items,
    *,
    batch_size: int,
    device: str,
) -> None:
    """Write FOLDER/NAME.npy, (N, F) float32, with NAME.json beside it that says of what.

    Goes on where an interrupted call stopped.

    Args:
        encoder: the backbone.
        spec: how a patch becomes its input.

    Raises:
        TkError: a feature is not finite, or a patch cannot be read any more.
    """
    where = choose_device(device)
    encoder = encoder.eval().to(where)
    paths = [items.root / file for file in items.files]

    def canvas(row: int) -> Image:
        return fit(spec, read_image(paths[row]))[0]

    def embed(canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            seen: torch.Tensor = encoder(torch.from_numpy(canvases).to(where))
            return seen.cpu().numpy()

    cache_features(
        folder,
        name,
        rows=len(paths),
        size=encoder.feature_size,
        key={
            "weights": weights_digest(encoder),
            "model_id": encoder.model_id,
            "img_size": encoder.img_size,
            "image_spec": spec_to_json(spec),
            "patches": _digest(items, paths),
        },
        canvas=canvas,
        embed=embed,
        batch_size=batch_size,
    )


def _digest(items: Items, paths: list[Path]) -> str:
    """Hash of the names and contents of all patches."""
    total = hashlib.sha256()
    for file, path in zip(items.files, paths, strict=True):
        total.update(f"{file}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()


def keep_encoder(path: Path, encoder: ImageEncoder, spec: ImageSpec) -> None:
    """Write the backbone beside its features, for chains."""
    save_encoder(path, encoder.cpu(), spec)


def read_features(folder: Path, name: str, rows: int) -> Features:
    """Read what `extract_features` wrote.

    Raises:
        TkError: missing, of another number of patches, or without the backbone's name.
    """
    data, about = folder / f"{name}.npy", folder / f"{name}.json"
    if not data.is_file():
        raise TkError(f"{data} does not exist", fix="run the step features")
    values = np.load(data)
    key = read_json(about).get("key") if about.is_file() else None
    if not isinstance(key, dict) or "weights" not in key:
        raise TkError(
            f"{about} does not say which backbone {data.name} is of",
            expected="what the step features writes beside it",
            fix="run it again: --step features --force",
        )
    if values.ndim != 2 or len(values) != rows:
        raise TkError(
            f"{data} is not of these patches",
            expected=f"({rows}, F) numbers, a row for every patch of class_info.json",
            found=str(values.shape),
            fix="run the step features again: --step features --force",
        )
    return Features(values, str(key["model_id"]), int(key["img_size"]), str(key["weights"]))
