"""The PyTorch models of the reference chains, in float32, eager, as their libraries run them.

All of them are told and give pixels of the picture; which canvas a model sees is its own matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tk.runtime.heads.text_detector import DEFAULT_PROMPT, TextOptions
from tk.runtime.preprocess import CropSpec, Image, ImageSpec, Placement, fit


class TorchDetector(Protocol):
    """Picture -> boxes above a threshold."""

    def propose(self, picture: Image, threshold: float) -> tuple[Tensor, Tensor, list[str]]:
        """Find boxes.

        Args:
            picture: (H, W, 3) uint8 RGB.
            threshold: least score.

        Returns:
            (N, 4) float32 xyxy in pixels of the picture, (N,) scores 0..1, N names.
        """


class TorchSegmenter(Protocol):
    """Picture and boxes -> logits of masks."""

    def encode(self, picture: Image) -> Any:
        """What `decode` needs of a picture: (H, W, 3) uint8 RGB."""

    def decode(self, features: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of boxes.

        Args:
            features: of one picture, from `encode`.
            boxes: (N, 4) float32 xyxy, pixels of the picture.

        Returns:
            logits: (N, h, w) float32, object above 0; frames: (N, 4) float32 xyxy, the rectangles
            of the picture that they cover, pixels.
        """


@dataclass(frozen=True)
class TorchEmbedder:
    """Crops -> unit vectors.

    Attributes:
        model: (N, H, W, 3) uint8 -> (N, D) float32, unit length.
        image: the canvas.
        crop: how objects are cut out.
    """

    model: Any
    image: ImageSpec
    crop: CropSpec

    def embed(self, crops: Sequence[Image]) -> Tensor:
        """Embed crops (h, w, 3) uint8 RGB in one call: (N, D) float32."""
        canvases = [torch.from_numpy(fit(self.image, crop)[0]) for crop in crops]
        embeddings: Tensor = self.model(torch.stack(canvases))
        return embeddings


@dataclass(frozen=True)
class TorchModels:
    """The three models of a chain."""

    detector: TorchDetector
    segmenter: TorchSegmenter
    embedder: TorchEmbedder


@dataclass(frozen=True)
class Compact:
    """tk's one-stage detector.

    Attributes:
        model: (1, H, W, 3) uint8 -> boxes (1, Q, 4) on the canvas, scores (1, Q, C).
        image: the canvas.
        classes: of the class axis.
    """

    model: Any
    image: ImageSpec
    classes: tuple[str, ...]

    def propose(self, picture: Image, threshold: float) -> tuple[Tensor, Tensor, list[str]]:
        """See `TorchDetector`."""
        canvas, placement = fit(self.image, picture)
        boxes, scores = (output[0] for output in self.model(torch.from_numpy(canvas)[None]))
        score, label = scores.max(dim=1)
        keep = score >= threshold
        words = [self.classes[index] for index in label[keep].tolist()]
        return to_picture(boxes[keep], placement), score[keep], words


@dataclass(frozen=True)
class GroundingDino:
    """The library's GroundingDINO with the library's post-processing.

    Attributes:
        network: `GroundingDinoForObjectDetection` or its MM sister.
        processor: `GroundingDinoProcessor`; only its text side is used.
        image: the canvas.
        mean, std: per channel, for values 0..1.
        text: prompt and threshold.
    """

    network: Any
    processor: Any
    image: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text: TextOptions

    def propose(self, picture: Image, threshold: float) -> tuple[Tensor, Tensor, list[str]]:
        """See `TorchDetector`; the text goes through its backbone for every picture, as there."""
        canvas, placement = fit(self.image, picture)
        rows, columns = placement.valid_hw
        mask = torch.zeros(1, *canvas.shape[:2], dtype=torch.long)
        mask[:, :rows, :columns] = 1
        pixels = (torch.from_numpy(canvas) / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)
        pixels = (pixels * mask[0, :, :, None]).permute(2, 0, 1)[None]
        tokens = self.processor.tokenizer(self._prompt(), return_tensors="pt")
        outputs = self.network(pixel_values=pixels, pixel_mask=mask, **tokens)
        found = self.processor.post_process_grounded_object_detection(
            outputs,
            tokens["input_ids"],
            threshold=threshold,
            text_threshold=self.text.text_threshold,
            target_sizes=[picture.shape[:2]],
        )[0]
        # With no boxes left, the library's list of names is [''].
        words = list(found["text_labels"])[: len(found["boxes"])]
        return found["boxes"], found["scores"], words

    def _prompt(self) -> str:
        prompt = (self.text.prompt or DEFAULT_PROMPT).lower().strip()
        return prompt if prompt.endswith(".") else prompt + "."


@dataclass(frozen=True)
class CompactSegmenter:
    """tk's segmenter: logits over the canvas, or over each box with a frame around it.

    Attributes:
        model: has `encode` and `decode`.
        image: the canvas.
        margin: share of a box's longer side that the frame adds; None for the whole canvas.
    """

    model: Any
    image: ImageSpec
    margin: float | None

    def encode(self, picture: Image) -> Any:
        """See `TorchSegmenter`."""
        canvas, placement = fit(self.image, picture)
        return self.model.encode(torch.from_numpy(canvas)[None]), placement

    def decode(self, features: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """See `TorchSegmenter`."""
        pixels, placement = features
        on_canvas = to_canvas(boxes, placement)
        logits, _ = self.model.decode(pixels, on_canvas)
        if self.margin is None:
            whole = torch.tensor([0.0, 0.0, self.image.width, self.image.height])
            frames = whole.expand(len(boxes), -1)
        else:
            frames = grown(on_canvas, self.margin)
        return logits, to_picture(frames, placement)


@dataclass(frozen=True)
class Sam2:
    """The library's SAM-2, best of its multimask outputs.

    Attributes:
        model: `Sam2Model`.
        image: the canvas, which pictures are stretched to.
        mean, std: per channel, for values 0..1.
    """

    model: Any
    image: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def encode(self, picture: Image) -> Any:
        """See `TorchSegmenter`."""
        canvas, placement = fit(self.image, picture)
        pixels = (torch.from_numpy(canvas) / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)
        features = self.model.get_image_embeddings(pixels.permute(2, 0, 1)[None])
        return features, placement, picture.shape[:2]

    def decode(self, features: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """See `TorchSegmenter`."""
        embeddings, placement, (height, width) = features
        found = self.model(
            image_embeddings=embeddings, input_boxes=to_canvas(boxes, placement)[None]
        )
        best = found.iou_scores[0].argmax(dim=1)
        logits = found.pred_masks[0][torch.arange(len(boxes)), best]
        return logits, torch.tensor([0.0, 0.0, width, height]).expand(len(boxes), -1)


def to_picture(boxes: Tensor, placement: Placement) -> Tensor:
    """Boxes (N, 4) xyxy on the canvas -> pixels of the picture."""
    scale, offset = _affine(placement)
    return (boxes - offset) / scale


def to_canvas(boxes: Tensor, placement: Placement) -> Tensor:
    """Boxes (N, 4) xyxy in pixels of the picture -> on the canvas."""
    scale, offset = _affine(placement)
    return boxes * scale + offset


def _affine(placement: Placement) -> tuple[Tensor, Tensor]:
    return torch.tensor(placement.scale * 2), torch.tensor(placement.offset * 2)


def grown(boxes: Tensor, margin: float) -> Tensor:
    """Boxes (N, 4) xyxy with their sides moved outwards by a share of the longer side."""
    step = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) * margin
    return torch.cat([boxes[:, :2] - step, boxes[:, 2:] + step], dim=1)
