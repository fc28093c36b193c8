"""What the command line says about a model to export, found on disk and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_BATCH = 16
"""Pictures per call that are proved when nobody asks for a number (0) and the model is small."""


@dataclass(frozen=True)
class Source:
    """A model to open; `registry.find_source` makes it from what the user typed.

    Attributes:
        path: checkpoint file, weights file or model folder; it exists.
        task: key of `registry.SOURCES`: `detector`, `segmenter`, `embedder`, `classifier` (heads
            and image classifiers) for our own checkpoints, `backbone` for files of
            `tk train ssl --export-backbone`, `grounding-dino`, `sam2` for models of elsewhere.
        size: (height, width) of the canvas in pixels, or None for the model's own.
        prompt: text to bake into the graph, "" for none.
        sam2_cfg: name of the original `sam2` configuration that a `.pt` file belongs to, or "".
        name: hub id, or the last part of a path: fit for the manifest.
        backbone: checkpoint of the backbone that a head is joined with, or None.
        licence: of the weights as far as the folder says, "" when it does not.
    """

    path: Path
    task: str
    size: tuple[int, int] | None = None
    prompt: str = ""
    sam2_cfg: str = ""
    name: str = ""
    backbone: Path | None = None
    licence: str = ""
