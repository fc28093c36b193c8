"""What a source gives to export: one PyTorch module per part, and the facts of the manifest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
        feed: makes inputs of a given batch from canvases `(n, H, W, 3) uint8` (or from `rows` of
            the model). The first row of what one part is fed belongs to the first row of every
            other part: the same picture, the same prompt.
        patch: entered while the module is traced, never while it runs as the reference: a place
            for changes to a library's functions that the exporter cannot read.
    """

    module: nn.Module
    spec: Part
    feed: Callable[[NDArray[Any], int], Arrays]
    patch: Callable[[], AbstractContextManager[None]] = nullcontext

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
    """A model on its way into a bundle; fields as in `tk.runtime.manifest.Manifest`.

    Attributes:
        parts: in the order of running: an input of a part is what an earlier part gave under that
            name, else it comes from outside. Parts without a free axis are proved as they are.
        checkpoint: file whose hash goes into the manifest, or a model folder.
        files: other files of the bundle, name -> content (a tokenizer); hashed in the manifest.
        rows: (n, F) float32, what the gate feeds in place of pictures to a model that sees none.
        rows_from: where they come from, for a person.
    """

    task: str
    parts: dict[str, ExportPart]
    image: ImageSpec
    crop: CropSpec | None
    classes: tuple[str, ...]
    settings: dict[str, Any]
    source: dict[str, Any]
    licence: str
    checkpoint: Path
    files: dict[str, bytes] = field(default_factory=dict)
    rows: NDArray[np.float32] | None = None
    rows_from: str = ""

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
