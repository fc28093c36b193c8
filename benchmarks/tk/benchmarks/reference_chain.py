"""The annotator as a plain script would do it: PyTorch eager, one picture, one box, one crop.

This is the structure of the annotator that `tk annotate` replaces, with the same weights,
thresholds and rules: what it finds is what `tk` must find. It shares with `tk` what defines a
model's input (decoding, letterbox, crop) and the assignment, and does everything else with the
operations of PyTorch, torchvision and Python, so it is also an independent check of tk's own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from tk.benchmarks.sources import Source
from tk.benchmarks.timing import PeakMemory, Run, Stopwatch
from tk.runtime.annotate.annotator import AnnotateOptions
from tk.runtime.annotate.output import PREDICTIONS
from tk.runtime.assign import assign_classes
from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import Gallery
from tk.runtime.heads.segmenter import REGION_MARGIN
from tk.runtime.images import read_image, relative_name
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, Image, Placement, cut_crop, fit
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
    """The sequential chain.

    Args:
        sources: task -> model.
        gallery: prototypes.
        threshold: least similarity of an accepted class.
        options: thresholds and modes; what concerns batches and engines is not used.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        gallery: Gallery,
        threshold: float,
        options: AnnotateOptions,
    ) -> None:
        self.detector = sources["detector"]
        self.segmenter = sources["segmenter"]
        self.embedder = sources["embedder"]
        self.gallery, self.threshold, self.options = gallery, threshold, options

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
        started = time.perf_counter()
        out.mkdir(parents=True, exist_ok=True)
        with open(out / PREDICTIONS, "w", encoding="utf-8") as file:
            for index, path in enumerate(files):
                begun = time.perf_counter()
                record, objects = self._picture(path, relative_name(path, folder), watch)
                with watch.stage("encode"):
                    file.write(",\n" if index else "[\n")
                    _write_record(file, record, objects)
                per_image.append(time.perf_counter() - begun)
            with watch.stage("encode"):
                file.write("\n]\n")
                file.flush()
                os.fsync(file.fileno())  # as tk does, whose result survives a power cut
        seconds = time.perf_counter() - started
        return Run(seconds, watch.seconds, per_image, None, memory.above_start())

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
            embeddings = [self.embed(image, thing) for thing in objects]
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
        canvas, placement = fit(self.detector.image, image)
        boxes, scores = (output[0] for output in self.detector.model(_batch(canvas)))
        score, label = scores.max(dim=1)
        scale, offset = _placement(placement)
        height, width = image.shape[:2]
        boxes = torchvision.ops.clip_boxes_to_image((boxes - offset) / scale, (height, width))
        options = self.options.detector
        sides = boxes[:, 2:] - boxes[:, :2]
        keep = (score >= options.box_threshold) & (sides > 0).all(dim=1)
        boxes, score, label = boxes[keep], score[keep], label[keep]
        kept = torchvision.ops.nms(boxes, score, options.nms_iou)[: options.most]
        words = [self.detector.classes[index] for index in label[kept].tolist()]
        return boxes[kept], score[kept].tolist(), words

    def segment(
        self, image: Image, boxes: Tensor, scores: list[float], words: list[str]
    ) -> list[Object]:
        """Cut out every box: the encoder once, the decoder box by box, masks of full size.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (N, 4) float32 xyxy, pixels of the picture.
            scores: N.
            words: N.

        Returns:
            The objects whose mask is not empty.
        """
        objects: list[Object] = []
        if not len(boxes):
            return objects
        canvas, placement = fit(self.segmenter.image, image)
        scale, offset = _placement(placement)
        pixels = self.segmenter.model.encode(_batch(canvas))
        for box, score, word in zip(boxes, scores, words, strict=True):
            on_canvas = box * scale + offset
            logits, _ = self.segmenter.model.decode(pixels, on_canvas[None])
            frame = (self._frame(on_canvas) - offset) / scale
            mask = full_mask(logits[0], frame, _region(box), image.shape[:2]).numpy()
            rows, columns = np.where(mask)
            if not len(rows):
                continue
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            objects.append(Object(np.asarray(edges, np.float32), mask, score, word))
        return objects

    def _frame(self, box: Tensor) -> Tensor:
        """Rectangle that the logits of a mask cover, canvas pixels: (4,) float32 xyxy."""
        spec, settings = self.segmenter.image, self.segmenter.settings
        if settings["mask_frame"] == "canvas":
            return torch.tensor([0.0, 0.0, spec.width, spec.height])
        return _grown(box, settings["frame_margin"])

    def embed(self, image: Image, thing: Object) -> NDArray[np.float32]:
        """Embed one object.

        Args:
            image: (H, W, 3) uint8 RGB.
            thing: what to cut out of it.

        Returns:
            (D,) float32, unit length.
        """
        height, width = image.shape[:2]
        spec = self.embedder.crop or CropSpec()
        crop = cut_crop(image, thing.box, spec, BoxMask(0, 0, thing.mask, height, width))
        canvas = fit(self.embedder.image, crop)[0]
        return np.asarray(self.embedder.model(_batch(canvas))[0].numpy(), np.float32)

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

    def _similarity(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine to every class: (C,) float32; a class without references is -1."""
        vectors, labels = self.gallery.vectors(self.options.search)
        best = np.full(len(self.gallery.classes), -1, np.float32)
        np.maximum.at(best, labels, vectors @ embedding)
        return best


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
    values = torch.nn.functional.grid_sample(
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


def _write_record(file: IO[str], record: dict[str, Any], objects: Sequence[Object]) -> None:
    for detection, thing in zip(record["detections"], objects, strict=True):
        size = list(thing.mask.shape)
        counts = run_lengths(thing.mask)
        detection["mask_rle"] = {"size": size, "counts": counts, "order": "row-major"}
    json.dump(record, file)


def _batch(canvas: Image) -> Tensor:
    return torch.from_numpy(canvas)[None]


def _placement(placement: Placement) -> tuple[Tensor, Tensor]:
    """Scale and offset of a letterbox for xyxy boxes: canvas = picture * scale + offset."""
    return torch.tensor(placement.scale * 2), torch.tensor(placement.offset * 2)


def _region(box: Tensor) -> Tensor:
    return _grown(box, REGION_MARGIN)


def _grown(box: Tensor, margin: float) -> Tensor:
    """A box whose sides were moved outwards by a share of its longer side: (4,) float32."""
    step = (box[2:] - box[:2]).max() * margin
    return torch.cat([box[:2] - step, box[2:] + step])
