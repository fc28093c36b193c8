"""What `tk bench models` times: ways to run a part of a model, and the inputs that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tk.runtime.backends.base import Arrays
from tk.runtime.manifest import Part


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """What to measure.

    Attributes:
        bundle: proved graphs and plans of one model.
        source: what the bundle was exported from, for PyTorch; "" leaves PyTorch out.
        backbone, sam2_cfg: as for `tk export`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, for engines and PyTorch alike.
        batches: sizes to time, rows of the free axis; a part takes those up to its largest.
        repeats: timed calls of each engine, part and batch.
        threads: on the CPU; 0 for all cores.
        compile: time `torch.compile` as well.
    """

    bundle: Path
    source: str = ""
    backbone: Path | None = None
    sam2_cfg: str = ""
    device: str = "auto"
    batches: tuple[int, ...] = (1, 4)
    repeats: int = 50
    threads: int = 0
    compile: bool = True


@dataclass
class Engine:
    """One way to run a part.

    Attributes:
        name: `fp16 on tensorrt`, `PyTorch, compiled`.
        precision: of the arithmetic.
        call: inputs -> outputs, from arrays of the host to arrays of the host.
        gpu_seconds: (inputs, repeats) -> seconds of each run by CUDA events, without copies; None
            where the engine tells no such times.
        bytes: of its file; 0 for PyTorch.
        opened: seconds that loading took; for PyTorch, that compiling took.
        first_call: seconds of the first call of all.
        facts: of the artifact.
    """

    name: str
    precision: str
    call: Callable[[Arrays], object]
    gpu_seconds: Callable[[Arrays, int], list[float]] | None = None
    bytes: int = 0
    opened: float = 0.0
    first_call: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def sizes_of(part: Part, options: ModelsOptions) -> list[int]:
    """Batches that a part takes among those asked for."""
    if not part.batch_axis:
        return [1]
    return [size for size in options.batches if size <= part.max_batch] or [part.max_batch]


def batch_of(part: Part, inputs: Arrays, size: int, turn: int) -> Arrays:
    """`size` rows of every input whose first axis is the batch, begun at another row each turn."""
    return {
        spec.name: inputs[spec.name][(np.arange(size) + turn) % len(inputs[spec.name])]
        if part.batch_axis and spec.shape[:1] == (part.batch_axis,)
        else inputs[spec.name]
        for spec in part.inputs
    }
