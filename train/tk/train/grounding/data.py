"""Training samples of GroundingDINO: a random view of a scene and a random prompt about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.preprocess import ImageSpec, place
from tk.train.detector.data import Augmentation, make_sample
from tk.train.grounding.phrases import Asked
from tk.train.scenes.store import Picture

ASPECT = 0.25
"""Largest random change of the log of a view's aspect: padding of any extent is seen."""


def canvas_spec(size: int) -> ImageSpec:
    """How the runtime prepares pictures for this model (see the export)."""
    return ImageSpec(size, size, anchor="corner", interpolation="linear", pad=0)


def grounding_sample(
    picture: Picture,
    asked: Asked,
    spec: ImageSpec,
    kind: Augmentation,
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Make one sample; objects that the prompt does not ask for are background.

    Returns:
        image: (H, W, 3) uint8 RGB, the view at the top left corner, zeros elsewhere.
        valid_hw: (2,) int64, rows and columns of the view.
        boxes: (N, 4) float32 cxcywh, relative to the view.
        named: (N, T) bool, tokens that name each object.
        ids: (T,) int64 tokens of the prompt.
        all_boxes: (M, 4) as `boxes`, of what is not asked for too, and all_labels: (M,) int64.
    """
    height, width = picture.image.shape[:2]
    wider = math.exp(rng.uniform(-ASPECT, ASPECT))
    h, w = place(spec, round(1000 * height), round(1000 * width * wider)).valid_hw
    view, boxes, labels = make_sample(picture, ImageSpec(h, w), kind, rng)
    image = np.zeros((spec.height, spec.width, 3), np.uint8)
    image[:h, :w] = view
    named = asked.tokens[labels]
    kept = named.any(axis=1)
    shares = np.asarray(relative(boxes) / np.array([w, h, w, h]), np.float32)
    return {
        "image": image,
        "valid_hw": np.array([h, w], np.int64),
        "boxes": shares[kept],
        "named": named[kept],
        "ids": np.array(asked.ids, np.int64),
        "all_boxes": shares,
        "all_labels": labels,
    }


def relative(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes xyxy -> cxcywh, (N, 4)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    both = np.concatenate([(low + high) / 2, high - low], 1)
    return np.asarray(both, np.float32)


def collate(samples: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    """Make a batch: objects one after the other, prompts padded to the longest.

    Returns:
        image, valid_hw: stacked; ids: (B, T); tokens: (B, T) bool; boxes: (N, 4);
        named: (N, T) bool; counts: (B,) int64, objects of each picture; all_boxes, all_labels,
        all_counts: the same of all objects.
    """
    length = max(len(sample["ids"]) for sample in samples)
    ids = np.stack([_padded(sample["ids"], length) for sample in samples])
    lengths = np.array([len(sample["ids"]) for sample in samples])
    arrays = {
        "image": np.stack([sample["image"] for sample in samples]),
        "valid_hw": np.stack([sample["valid_hw"] for sample in samples]),
        "ids": ids,
        "tokens": np.arange(length)[None] < lengths[:, None],
        "boxes": np.concatenate([sample["boxes"] for sample in samples]),
        "named": np.concatenate([_padded(sample["named"], length) for sample in samples]),
        "counts": np.array([len(sample["boxes"]) for sample in samples], np.int64),
        "all_boxes": np.concatenate([sample["all_boxes"] for sample in samples]),
        "all_labels": np.concatenate([sample["all_labels"] for sample in samples]),
        "all_counts": np.array([len(sample["all_boxes"]) for sample in samples], np.int64),
    }
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _padded(array: NDArray[Any], length: int) -> NDArray[Any]:
    """Fill the last axis with zeros up to `length`."""
    missing = [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])]
    return np.pad(array, missing)
