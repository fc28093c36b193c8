"""What a source gives to export: one PyTorch module per part, and the facts of the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part
from tk.runtime.preprocess import CropSpec, ImageSpec


@dataclass(frozen=True)
class ExportPart:
    """One graph to be.

    Attributes:
        module: in evaluation mode; positional inputs and a tensor or a tuple out, in the order of
            `spec`.
        spec: names, dtypes and shapes; a string axis is free, and the first one is the batch that
            the gate varies.
        feed: makes inputs of a given batch from canvases `(n, H, W, 3) uint8`.
    """

    module: nn.Module
    spec: Part
    feed: Callable[[NDArray[np.uint8], int], Arrays]

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> Arrays:
        """Run the PyTorch module, eager, float32."""
        tensors = [torch.from_numpy(inputs[spec.name]) for spec in self.spec.inputs]
        outputs = self.module(*tensors)
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        names = (spec.name for spec in self.spec.outputs)
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}


@dataclass(frozen=True)
class ExportModel:
    """A model on its way into a bundle; fields as in `tk.runtime.manifest.Manifest`."""

    task: str
    parts: dict[str, ExportPart]
    image: ImageSpec
    crop: CropSpec | None
    classes: tuple[str, ...]
    settings: dict[str, Any]
    source: dict[str, Any]
    licence: str
    checkpoint: Path

    @property
    def parameters(self) -> int:
        """Number of weights over all parts; parts that share a module count it once."""
        unique = {
            id(p): p.numel() for part in self.parts.values() for p in part.module.parameters()
        }
        return sum(unique.values())


def repeat_rows(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Take `count` rows, starting over when there are fewer."""
    repeated: NDArray[Any] = rows[np.arange(count) % len(rows)]
    return repeated
