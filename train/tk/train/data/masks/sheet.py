"""A contact sheet: some crops with their masks drawn, to judge them at a glance."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.draw import Drawn, draw_detections
from tk.runtime.files import write_bytes
from tk.runtime.preprocess import Image
from tk.train.data.masks.report import Outcome

TILES, COLUMNS = 64, 8
_SIDE, _LINE, _GAP = 200, 20, 6
_COLORS = {"made": (60, 180, 75), "skipped": (230, 25, 75), "unusable": (245, 130, 49)}


class Sheet:
    """Collects small pictures while masks are made; of many crops it keeps evenly spaced ones."""

    def __init__(self) -> None:
        self._every, self._seen = 1, 0
        self._tiles: list[Image] = []

    def add(self, image: Image, mask: NDArray[np.bool_] | None, outcome: Outcome) -> None:
        """Show one crop, or pass over it.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) bool, also one that was refused; None for no answer.
            outcome: gives the colour and the words.
        """
        if self._seen % self._every == 0:
            self._tiles.append(_tile(image, mask, outcome))
            if len(self._tiles) > TILES:
                self._tiles, self._every = self._tiles[::2], self._every * 2
        self._seen += 1

    def write(self, path: Path) -> None:
        """Write the sheet as PNG; without a single crop nothing is written."""
        if not self._tiles:
            return
        width, rows = min(COLUMNS, len(self._tiles)), -(-len(self._tiles) // COLUMNS)
        across, down = _SIDE + _GAP, _SIDE + _LINE + _GAP
        page = np.full((rows * down + _GAP, width * across + _GAP, 3), 255, np.uint8)
        for index, tile in enumerate(self._tiles):
            y, x = _GAP + index // COLUMNS * down, _GAP + index % COLUMNS * across
            page[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        _, data = cv2.imencode(".png", cv2.cvtColor(page, cv2.COLOR_RGB2BGR))
        write_bytes(path, data.tobytes())


def _tile(image: Image, mask: NDArray[np.bool_] | None, outcome: Outcome) -> Image:
    """The crop scaled into a square with its words in a line above, uint8 RGB."""
    scale = _SIDE / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    tile = np.full((_SIDE + _LINE, _SIDE, 3), 255, np.uint8)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    tile[_LINE : _LINE + height, :width] = cv2.resize(image, (width, height), interpolation=way)
    placed = None
    if mask is not None:
        small = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        placed = (0, _LINE, small > 0)
    box = np.array([0, _LINE, width, _LINE + height], np.float32)
    drawn = Drawn(box, _words(outcome), outcome.result, placed)
    return draw_detections(tile, [drawn], colors=_COLORS)


def _words(outcome: Outcome) -> str:
    numbers = ""
    if outcome.iou is not None and outcome.area is not None:
        numbers = f"{outcome.iou:.2f}, {outcome.area:.0%} "
    said = outcome.reason.split(":")[0] or outcome.crop.split("/")[0]
    return numbers + said
