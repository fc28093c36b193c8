"""The stages of the annotator: decode, detect, segment, embed, assign.

Each is a callable that changes one group, states what it keeps busy, and knows nothing of queues,
files or other stages, so that the same stages run under any executor.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.annotate.groups import Candidate, Group, Item
from tk.runtime.assign import Mode, assign_classes, margins
from tk.runtime.errors import TkError
from tk.runtime.gallery.search import PrototypeSearch
from tk.runtime.heads.detector import Detector
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.images import read_image
from tk.runtime.preprocess import Image, cut_crop
from tk.runtime.records import UNKNOWN, Detection, ImageRecord, RankedClass


@dataclass(frozen=True)
class Decode:
    """Read pictures, several at once; a bad one becomes an `error` and the run goes on."""

    threads: Executor
    max_pixels: int

    def __call__(self, group: Group) -> None:
        """Fill `image` or `error`."""
        list(self.threads.map(self._read, group.items))

    def _read(self, item: Item) -> None:
        try:
            item.image = read_image(item.path, max_pixels=self.max_pixels)
        except TkError as error:
            item.error = error.what
        except MemoryError:
            item.error = "not enough memory to decode this picture"


@dataclass(frozen=True)
class Detect:
    """Find boxes in all pictures of the group."""

    detector: Detector

    def __call__(self, group: Group) -> None:
        """Fill `proposals`."""
        good = group.good
        found = self.detector.detect([_image(item) for item in good])
        for item, proposals in zip(good, found, strict=True):
            item.proposals = proposals


@dataclass(frozen=True)
class Segment:
    """Cut out every box; an empty mask drops the proposal and is counted."""

    segmenter: Segmenter

    def __call__(self, group: Group) -> None:
        """Fill `candidates` and `dropped`."""
        busy = [(item, item.proposals) for item in group.items if item.proposals]
        found = self.segmenter.segment(
            [_image(item) for item, _ in busy], [proposals.boxes for _, proposals in busy]
        )
        for (item, proposals), masks in zip(busy, found, strict=True):
            for row, mask in enumerate(masks.masks):
                box = mask.tight_box()
                if box is None:
                    item.dropped += 1
                    continue
                score = float(proposals.scores[row])
                item.candidates.append(Candidate(box, mask, score, proposals.words[row]))


@dataclass(frozen=True)
class Embed:
    """Embed the crops of the whole group in one go."""

    embedder: Embedder

    def __call__(self, group: Group) -> None:
        """Fill `embeddings`."""
        good = group.good
        crops = [
            cut_crop(_image(item), candidate.box, self.embedder.crop, candidate.mask)
            for item in good
            for candidate in item.candidates
        ]
        embeddings = self.embedder.embed(crops)
        start = 0
        for item in good:
            stop = start + len(item.candidates)
            item.embeddings, start = embeddings[start:stop], stop


@dataclass(frozen=True)
class Assign:
    """Compare with the prototypes and give each class at most once per picture.

    Attributes:
        search: similarity to the classes.
        threshold: least similarity of an accepted class.
        mode: see `tk.runtime.assign`.
        masks: whether records carry masks.
    """

    search: PrototypeSearch
    threshold: float
    mode: Mode
    masks: bool

    def __call__(self, group: Group) -> None:
        """Fill `record`."""
        for item in group.items:
            item.record = self._record(item)

    def _record(self, item: Item) -> ImageRecord:
        if item.error or item.embeddings is None or item.image is None:
            return ImageRecord(item.name, None, None, (), error=item.error)
        height, width = item.image.shape[:2]
        similarity = self.search.similarity(item.embeddings)
        assigned = assign_classes(similarity, self.threshold, self.mode)
        margin, runner_up = margins(similarity, assigned)
        detections = tuple(
            self._detection(candidate, similarity[row], assigned[row], margin[row], runner_up[row])
            for row, candidate in enumerate(item.candidates)
        )
        return ImageRecord(item.name, width, height, detections)

    def _detection(
        self,
        candidate: Candidate,
        similarity: NDArray[np.float32],
        assigned: int | None,
        margin: float | None,
        runner_up: int | None,
    ) -> Detection:
        classes = self.search.classes
        x0, y0, x1, y1 = (int(edge) for edge in candidate.box)
        order = np.argsort(-similarity, kind="stable")
        best = int(order[0])
        return Detection(
            bbox_xyxy=(x0, y0, x1, y1),
            class_name=UNKNOWN if assigned is None else classes[assigned],
            score_metric=float(similarity[best if assigned is None else assigned]),
            score_vlm=candidate.score,
            vlm_class=candidate.words,
            ranked=tuple(RankedClass(classes[i], float(similarity[i])) for i in order),
            margin=margin,
            runner_up=None if runner_up is None else classes[runner_up],
            mask=candidate.mask if self.masks else None,
        )


def _image(item: Item) -> Image:
    if item.image is None:
        raise ValueError(f"stage order: {item.name} was not decoded")
    return item.image


def free_pictures(group: Group) -> None:
    """Let go of what the records do not need."""
    nothing: dict[str, Any] = {"image": None, "proposals": None, "embeddings": None}
    for item in group.items:
        item.__dict__.update(nothing)
        item.candidates = []
