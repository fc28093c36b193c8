"""The oracle: transformers' own forward pass and post-processing, on the runtime's canvas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tk.export.grounding.load import ATTENTION, MEAN, STD
from tk.runtime.preprocess import ImageSpec, fit


@dataclass(frozen=True)
class Answer:
    """What the library finds in one picture, in the order of its queries."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    words: list[str]


class Library:
    """A model folder as a user of transformers would run it."""

    def __init__(self, folder: Path) -> None:
        auto: Any = transformers.AutoModelForZeroShotObjectDetection
        self.network = auto.from_pretrained(folder, attn_implementation=ATTENTION).eval()
        tokenizer: Any = transformers.AutoTokenizer
        self.processor = transformers.GroundingDinoProcessor(  # type: ignore[no-untyped-call]
            transformers.GroundingDinoImageProcessor(), tokenizer.from_pretrained(folder)
        )

    @torch.inference_mode()
    def forward(self, spec: ImageSpec, images: list[Any], prompt: str) -> Any:
        """Raw outputs for pictures of any sizes, letterboxed as the runtime does it."""
        fitted = [fit(spec, image) for image in images]
        canvas = torch.from_numpy(np.stack([own for own, _ in fitted])).float() / 255
        mask = torch.zeros(canvas.shape[:3], dtype=torch.long)
        for row, (_, placement) in enumerate(fitted):
            height, width = placement.valid_hw
            mask[row, :height, :width] = 1
        pixels = (canvas - torch.tensor(MEAN)) / torch.tensor(STD) * mask[..., None]
        text = self.processor.tokenizer([prompt] * len(images), return_tensors="pt")
        return self.network(pixel_values=pixels.permute(0, 3, 1, 2), pixel_mask=mask, **text)

    def answers(
        self, outputs: Any, images: list[Any], box_threshold: float, text_threshold: float
    ) -> list[Answer]:
        """Post-process as the library does."""
        found = self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=box_threshold,
            text_threshold=text_threshold,
            target_sizes=[image.shape[:2] for image in images],
        )
        return [
            # The library gives [''] where it finds nothing.
            Answer(
                own["boxes"].numpy(), own["scores"].numpy(), own["text_labels"][: len(own["boxes"])]
            )
            for own in found
        ]
