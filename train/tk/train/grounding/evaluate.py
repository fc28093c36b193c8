"""Figures on held-out pictures: average precision by words, and how often the word is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.boxes import clip, iou_matrix, nms, valid
from tk.runtime.errors import TkError
from tk.runtime.heads.detector import DetectorOptions
from tk.runtime.heads.text_detector import TextOptions
from tk.runtime.images import read_image
from tk.runtime.metrics.detection import mean_average_precision
from tk.runtime.preprocess import Image, ImageSpec, fit
from tk.runtime.text.phrases import assemble_phrases
from tk.runtime.text.tokenizer import Tokenizer
from tk.train.grounding.matching import corners
from tk.train.grounding.network import forward, normalise
from tk.train.grounding.phrases import Asked
from tk.train.scenes.coco import Scene

BATCH = 8


@dataclass(frozen=True, eq=False)
class Found:
    """Detections of one picture, best first, after non-maximum suppression.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels of the picture.
        scores: (N,) float32, the best token's.
        labels: (N,) int64, the phrase whose tokens score highest on average.
        words: N phrases, as the runtime puts them together.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    words: tuple[str, ...]


class Finder:
    """Detects as `TextDetector` of the runtime does, without a threshold of the boxes.

    Args:
        network: the library's model, in evaluation mode.
        reader: its tokenizer.
        spec: the canvas.
        mean, std: see `normalise`.
    """

    def __init__(
        self,
        network: Any,
        reader: Tokenizer,
        spec: ImageSpec,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.network, self.reader, self.spec = network, reader, spec
        self.mean, self.std = mean, std

    def find(self, images: Sequence[Image], asked: Asked) -> list[Found]:
        """Detect what a prompt asks for.

        Args:
            images: each (H, W, 3) uint8 RGB.
            asked: the prompt.
        """
        device = next(self.network.parameters()).device
        fitted = [fit(self.spec, image) for image in images]
        canvas = torch.from_numpy(np.stack([picture for picture, _ in fitted])).to(device)
        valid_hw = torch.tensor([placement.valid_hw for _, placement in fitted], device=device)
        pixels, mask = normalise(canvas, valid_hw, self.mean, self.std)
        ids = torch.tensor([asked.ids] * len(images), device=device)
        outputs = forward(self.network, pixels, mask, ids, torch.ones_like(ids, dtype=torch.bool))
        size = valid_hw.flip(1).float().repeat(1, 2)[:, None]
        boxes = (corners(outputs.boxes[-1]) * size).cpu().numpy()
        scores = outputs.logits[-1].sigmoid().cpu().numpy()
        return [
            self._found(placement.to_image(own), score, image, asked)
            for own, score, image, (_, placement) in zip(boxes, scores, images, fitted, strict=True)
        ]

    def _found(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        image: Image,
        asked: Asked,
    ) -> Found:
        best = scores.max(axis=1)
        boxes = clip(boxes, image.shape[1], image.shape[0])
        keep = np.flatnonzero(valid(boxes))
        keep = keep[nms(boxes[keep], best[keep], DetectorOptions().nms_iou)]
        share = asked.phrases / asked.phrases.sum(axis=1, keepdims=True)
        labels = (scores[keep] @ share.T).argmax(axis=1)
        words = assemble_phrases(
            scores[keep],
            asked.ids,
            TextOptions().text_threshold,
            self.reader.limit,
            self.reader.write,
        )
        return Found(boxes[keep], best[keep], labels.astype(np.int64), tuple(words))


def figures(
    finder: Finder, scenes: Sequence[Scene], prompts: Mapping[str, Asked]
) -> dict[str, float]:
    """Measure on picture files, one class per phrase of a prompt.

    Args:
        finder: detects.
        scenes: what is measured on; pictures that cannot be read are left out.
        prompts: each with what its figures' names begin with.

    Returns:
        ap50, ap75: mean average precision over the phrases.
        named: of the objects that a box above the runtime's threshold lies on, the share whose
            words are exactly the phrase that names the object.
        found: share of the objects that such a box lies on.
        Nothing when the scenes have no objects.
    """
    results: dict[str, list[Found]] = {prefix: [] for prefix in prompts}
    truths: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    for start in range(0, len(scenes), BATCH):
        read = [(scene, _read(scene)) for scene in scenes[start : start + BATCH]]
        images = [image for _, image in read if image is not None]
        truths += [_truth(scene) for scene, image in read if image is not None]
        for prefix, asked in prompts.items() if images else ():
            results[prefix] += finder.find(images, asked)
    if not any(len(boxes) for boxes, _ in truths):
        return {}
    return {
        prefix + name: value
        for prefix, asked in prompts.items()
        for name, value in _figures(results[prefix], truths, asked).items()
    }


def _figures(
    results: Sequence[Found],
    classes: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
    asked: Asked,
) -> dict[str, float]:
    phrase = (asked.tokens[:, None] & asked.phrases[None]).any(axis=2).argmax(axis=1)
    truths = [(boxes, phrase[labels]) for boxes, labels in classes]
    predictions = [(found.boxes, found.scores, found.labels) for found in results]
    hits = [_hits(found, *true, asked) for found, true in zip(results, truths, strict=True)]
    seen, named = (sum(pair[i] for pair in hits) for i in (0, 1))
    return {
        "ap50": mean_average_precision(predictions, truths, 0.5),
        "ap75": mean_average_precision(predictions, truths, 0.75),
        "named": named / max(seen, 1),
        "found": seen / sum(len(boxes) for boxes, _ in truths),
    }


def _hits(
    found: Found, boxes: NDArray[np.float32], labels: NDArray[np.int64], asked: Asked
) -> tuple[int, int]:
    """Objects that a likely box lies on, and how many of these boxes carry the right word."""
    likely = np.flatnonzero(found.scores > DetectorOptions().box_threshold)
    if not len(likely) or not len(boxes):
        return 0, 0
    overlap = iou_matrix(boxes, found.boxes[likely])
    seen = overlap.max(axis=1) >= 0.5
    words = [found.words[likely[index]] for index in overlap.argmax(axis=1)]
    right = [word == asked.texts[label] for word, label in zip(words, labels, strict=True)]
    return int(seen.sum()), int((seen & np.array(right)).sum())


def _read(scene: Scene) -> Image | None:
    try:
        return read_image(scene.path)
    except TkError:
        return None


def _truth(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    boxes = [thing.box for thing in scene.things]
    stacked = np.stack(boxes) if boxes else np.zeros((0, 4), np.float32)
    return stacked, np.array([thing.label for thing in scene.things], np.int64)
