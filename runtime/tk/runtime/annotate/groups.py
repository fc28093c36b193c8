"""What travels through the stages: groups of pictures.

Which pictures and crops share a batch is a function of the sorted input list alone, never of
timing, because batches change the last bits of a float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tk.runtime.heads.detector import Proposals
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import Image
from tk.runtime.records import ImageRecord


@dataclass(frozen=True)
class Candidate:
    """A proposal with a mask that is not empty.

    Attributes:
        box: (4,) float32 xyxy, tight box of the mask, half-open, pixels of the picture.
        mask: where the object is.
        score: of the detector, 0..1.
        words: what the detector calls it.
    """

    box: NDArray[np.float32]
    mask: BoxMask
    score: float
    words: str


@dataclass
class Item:
    """One picture on its way; a stage fills in what it finds.

    Attributes:
        name: relative to the input folder, POSIX, NFC.
        error: why this picture gives no detections; the stages after it pass it by.
        seconds: stage name -> this picture's share of the stage's time.
    """

    path: Path
    name: str
    image: Image | None = None
    error: str = ""
    proposals: Proposals | None = None
    candidates: list[Candidate] = field(default_factory=list)
    dropped: int = 0
    embeddings: NDArray[np.float32] | None = None
    record: ImageRecord | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Group:
    """Pictures that go through the stages together, in the order of the input list."""

    items: list[Item]

    @property
    def good(self) -> list[Item]:
        """The pictures that could be read."""
        return [item for item in self.items if not item.error]


Resource = Literal["cpu", "engine", "io"]


@dataclass(frozen=True)
class Stage:
    """One step of the annotator.

    Attributes:
        name: also the column in `timings.csv`.
        resource: what it keeps busy; executors use it to overlap stages.
        run: changes a group in place.
    """

    name: str
    resource: Resource
    run: Callable[[Group], None]


def make_groups(items: Sequence[Item], size: int) -> Iterator[Group]:
    """Cut the sorted list into groups of `size`."""
    for start in range(0, len(items), size):
        yield Group(list(items[start : start + size]))
