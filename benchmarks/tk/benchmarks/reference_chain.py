"""The annotator as scripts do it: PyTorch eager, one picture after the other.

Sequential is the structure of the annotator that `tk annotate` replaces: one box, one crop at a
time, run lengths pixel by pixel. Batched is what a careful programmer makes of it: all boxes of a
picture in one call, all crops in one, run lengths by numpy. Weights, thresholds and rules are the
same: what they find is what `tk` must find. They share with `tk` what defines a model's input
(decoding, letterbox, crop) and the assignment, and do everything else with the operations of
PyTorch, torchvision and Python, so they are also an independent check of tk's own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from tk.benchmarks.fixed_boxes import fixed_boxes
from tk.benchmarks.timing import PeakMemory, Run, Stopwatch
from tk.benchmarks.torch_models import TorchModels, grown
from tk.runtime.annotate.annotator import AnnotateOptions
from tk.runtime.annotate.output import PREDICTIONS
from tk.runtime.assign import assign_classes
from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import Gallery
from tk.runtime.heads.segmenter import REGION_MARGIN
from tk.runtime.images import read_image, relative_name
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import Image, cut_crop
from tk.runtime.records import UNKNOWN

STAGES = ("decode", "detect", "segment", "embed", "assign", "encode")


@dataclass(frozen=True)
class Object:
    """One object of a picture.

    Attributes:
        box: (4,) float32 xyxy, tight box of the mask, half-open, pixels of the picture.
        mask: (H, W) bool, the whole picture.
        score: of the detector, 0..1.
        words: what the detector calls it.
    """

    box: NDArray[np.float32]
    mask: NDArray[np.bool_]
    score: float
    words: str


class ReferenceChain:
    """A chain in PyTorch.

    Args:
        models: detector, segmenter, embedder.
        gallery: prototypes.
        threshold: least similarity of an accepted class.
        options: thresholds and modes; what concerns batches and engines is not used.
        batched: all boxes and all crops of a picture at once, instead of one by one.
        boxes: the detector runs, and then so many boxes take the place of what it found; 0: not.
    """

    def __init__(
        self,
        models: TorchModels,
        gallery: Gallery,
        threshold: float,
        options: AnnotateOptions,
        *,
        batched: bool = False,
        boxes: int = 0,
    ) -> None:
        self.models, self.gallery, self.threshold = models, gallery, threshold
        self.options, self.batched, self.boxes = options, batched, boxes

    @torch.inference_mode()
    def run(self, files: Sequence[Path], folder: Path, out: Path) -> Run:
        """Annotate pictures one after the other.

        Args:
            files: pictures under `folder`.
            folder: record names are relative to it.
            out: gets `predictions.json`.
        """
        watch, memory = Stopwatch(STAGES), PeakMemory()
        per_image: list[float] = []
        memory.reset()
        cpu, started = time.process_time(), time.perf_counter()
        out.mkdir(parents=True, exist_ok=True)
        with open(out / PREDICTIONS, "w", encoding="utf-8") as file:
            for index, path in enumerate(files):
                begun = time.perf_counter()
                record, objects = self._picture(path, relative_name(path, folder), watch)
                with watch.stage("encode"):
                    file.write(",\n" if index else "[\n")
                    self._write(file, record, objects)
                per_image.append(time.perf_counter() - begun)
            with watch.stage("encode"):
                file.write("\n]\n")
                file.flush()
                os.fsync(file.fileno())  # as tk does, whose result survives a power cut
        seconds = time.perf_counter() - started
        cpu = time.process_time() - cpu
        return Run(seconds, watch.seconds, per_image, None, memory.above_start(), cpu)

    def _picture(
        self, path: Path, name: str, watch: Stopwatch
    ) -> tuple[dict[str, Any], list[Object]]:
        record: dict[str, Any] = {"image": name, "width": None, "height": None, "detections": []}
        with watch.stage("decode"):
            try:
                image = read_image(path, max_pixels=self.options.max_pixels)
            except TkError as error:
                return {**record, "error": error.what}, []
        record["height"], record["width"] = image.shape[:2]
        with watch.stage("detect"):
            boxes, scores, words = self.detect(image)
        with watch.stage("segment"):
            objects = self.segment(image, boxes, scores, words)
        with watch.stage("embed"):
            embeddings = self.embed(image, objects)
        with watch.stage("assign"):
            record["detections"] = self.name(objects, embeddings)
        return record, objects

    def detect(self, image: Image) -> tuple[Tensor, list[float], list[str]]:
        """Find boxes in one picture.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (N, 4) float32 xyxy in pixels of the picture, best first; N scores; N names.
        """
        options = self.options.detector
        boxes, score, words = self.models.detector.propose(image, options.box_threshold)
        height, width = image.shape[:2]
        boxes = torchvision.ops.clip_boxes_to_image(boxes, (height, width))
        some = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
        sides = boxes[some, 2:] - boxes[some, :2]
        weight = sides.prod(dim=1) if options.nms_by == "area" else score[some]
        kept = torchvision.ops.nms(boxes[some], weight, options.nms_iou)
        rows = some[kept[score[some][kept].argsort(descending=True, stable=True)]][: options.most]
        if self.boxes:
            given = fixed_boxes(self.boxes, height, width)
            return torch.from_numpy(given.boxes), given.scores.tolist(), list(given.words)
        return boxes[rows], score[rows].tolist(), [words[row] for row in rows.tolist()]

    def segment(
        self, image: Image, boxes: Tensor, scores: list[float], words: list[str]
    ) -> list[Object]:
        """Cut out every box: the encoder once, the decoder box by box or at once.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (N, 4) float32 xyxy, pixels of the picture.
            scores: N.
            words: N.

        Returns:
            The objects whose mask is not empty; masks have the size of the picture.
        """
        objects: list[Object] = []
        if not len(boxes):
            return objects
        segmenter = self.models.segmenter
        features = segmenter.encode(image)
        together = [boxes] if self.batched else [box[None] for box in boxes]
        decoded = [segmenter.decode(features, some) for some in together]
        masks = [
            full_masks(logits, frames, grown(some, REGION_MARGIN), image.shape[:2])
            for some, (logits, frames) in zip(together, decoded, strict=True)
        ]
        for mask, score, word in zip(torch.cat(masks).numpy(), scores, words, strict=True):
            rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
            if not len(rows):
                continue
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            objects.append(Object(np.asarray(edges, np.float32), mask, score, word))
        return objects

    def embed(self, image: Image, objects: Sequence[Object]) -> list[NDArray[np.float32]]:
        """Embed objects, one by one or at once.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: what to cut out of it.

        Returns:
            (D,) float32, unit length, for each.
        """
        height, width = image.shape[:2]
        embedder = self.models.embedder
        crops = [
            cut_crop(image, thing.box, embedder.crop, BoxMask(0, 0, thing.mask, height, width))
            for thing in objects
        ]
        together = [crops] if self.batched and crops else [[crop] for crop in crops]
        return [row.numpy() for some in together for row in embedder.embed(some)]

    def name(
        self, objects: Sequence[Object], embeddings: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        """Give classes to the objects of one picture; returns detections without masks."""
        if not objects:
            return []
        similarity = np.stack([self._similarity(embedding) for embedding in embeddings])
        assigned = assign_classes(similarity, self.threshold, self.options.assign)
        detections = []
        for thing, row, own in zip(objects, similarity, assigned, strict=True):
            pairs = zip(self.gallery.classes, row.tolist(), strict=True)
            ranked = sorted(pairs, key=lambda pair: -pair[1])
            detections.append(
                {
                    "bbox_xyxy": [int(edge) for edge in thing.box],
                    "class": UNKNOWN if own is None else self.gallery.classes[own],
                    "score_metric": ranked[0][1] if own is None else float(row[own]),
                    "score_vlm": thing.score,
                    "vlm_class": thing.words,
                    "ranked": [{"name": name, "score": score} for name, score in ranked],
                }
            )
        return detections

    def _write(self, file: IO[str], record: dict[str, Any], objects: Sequence[Object]) -> None:
        encode = run_lengths_at_once if self.batched else run_lengths
        for detection, thing in zip(record["detections"], objects, strict=True):
            size, counts = list(thing.mask.shape), encode(thing.mask)
            detection["mask_rle"] = {"size": size, "counts": counts, "order": "row-major"}
        json.dump(record, file)

    def _similarity(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine to every class: (C,) float32; a class without references is -1."""
        vectors, labels = self.gallery.vectors(self.options.search)
        best = np.full(len(self.gallery.classes), -1, np.float32)
        np.maximum.at(best, labels, vectors @ embedding)
        return best


def full_masks(logits: Tensor, frames: Tensor, regions: Tensor, hw: tuple[int, ...]) -> Tensor:
    """Bring logits to the resolution of the picture and paste them into masks of its size.

    Args:
        logits: (N, h, w) float32; above 0 is inside the object.
        frames: (N, 4) float32 xyxy: the rectangles that they cover, pixels of the picture.
        regions: (N, 4) float32 xyxy: no mask outside them, pixels of the picture.
        hw: height and width of the picture.

    Returns:
        (N, H, W) bool.
    """
    whole = torch.tensor([0, 0, hw[1], hw[0]], dtype=torch.float32)
    if bool((frames == whole).all()):
        # As the library does it: `post_process_masks` of SAM-2.
        size = (hw[0], hw[1])
        values = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        masks = values > 0
        return torch.stack(
            [_inside(mask, region) for mask, region in zip(masks, regions, strict=True)]
        )
    rows = zip(logits, frames, regions, strict=True)
    return torch.stack([full_mask(own, frame, region, hw) for own, frame, region in rows])


def _inside(mask: Tensor, region: Tensor) -> Tensor:
    """A mask (H, W) bool that is empty outside a region (4,) xyxy."""
    kept = torch.zeros_like(mask)
    low = region[:2].floor().clamp(min=0).int().tolist()
    high = region[2:].ceil().int().tolist()
    rows, columns = slice(low[1], max(high[1], 0)), slice(low[0], max(high[0], 0))
    kept[rows, columns] = mask[rows, columns]
    return kept


def full_mask(logits: Tensor, frame: Tensor, region: Tensor, hw: tuple[int, ...]) -> Tensor:
    """Bring logits to the resolution of the picture and paste them into a mask of its size.

    Args:
        logits: (h, w) float32; above 0 is inside the object.
        frame: (4,) float32 xyxy: the rectangle that they cover, pixels of the picture.
        region: (4,) float32 xyxy: no mask outside it, pixels of the picture.
        hw: height and width of the picture.

    Returns:
        (H, W) bool.
    """
    mask = torch.zeros(hw[0], hw[1], dtype=torch.bool)
    x0, y0 = np.ceil(frame[:2].numpy() - 0.5).clip(0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(frame[2:].numpy() - 0.5), hw[::-1]).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return mask
    sides = frame[2:] - frame[:2]
    x = (torch.arange(x0, x1) + 0.5 - frame[0]) / sides[0] * 2 - 1
    y = (torch.arange(y0, y1) + 0.5 - frame[1]) / sides[1] * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    values = F.grid_sample(
        logits[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    # The frame is computed whole, as for SAM-2's canvas; then only the region is pasted.
    low, high = region[:2].floor().int().tolist(), region[2:].ceil().int().tolist()
    left, right = max(x0, low[0]), min(x1, high[0])
    top, bottom = max(y0, low[1]), min(y1, high[1])
    if left < right and top < bottom:
        part = values[0, 0, top - y0 : bottom - y0, left - x0 : right - x0]
        mask[top:bottom, left:right] = part > 0
    return mask


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Row-major run lengths, zeros first, pixel by pixel, as the original annotator codes them.

    Args:
        mask: (H, W) bool.
    """
    counts: list[int] = []
    previous: np.uint8 | int = 0
    run = 0
    for pixel in mask.astype(np.uint8).flatten():
        if pixel != previous:
            counts.append(run)
            previous, run = pixel, 0
        run += 1
    counts.append(run)
    return counts


def run_lengths_at_once(mask: NDArray[np.bool_]) -> list[int]:
    """Row-major run lengths, zeros first, from the places where neighbours differ.

    Args:
        mask: (H, W) bool.
    """
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return [*([0] if flat[0] else []), *counts.tolist()]
