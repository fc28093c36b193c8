"""A picture of what was cut out of a strip: its boxes and squares, the patches below."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tk.runtime.draw import Drawn, class_colors, draw_detections
from tk.runtime.preprocess import Image
from tk.train.data.steel.layout import BACKGROUND, CLASSES, class_folder
from tk.train.data.steel.prepared import Box

_TILE, _GAP = 224, 8


def draw_extraction(
    image: Image, cuts: Sequence[tuple[str, Box | None, Box]], patches: Sequence[Image]
) -> Image:
    """Draw a strip with its boxes (thick) and squares (thin) over its patches in a row.

    Args:
        image: (H, W, 3) uint8 RGB.
        cuts: class folder, box of the defect (None without one) and square of each patch.
        patches: (S, S, 3) uint8 RGB each, as many.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    colors = class_colors([*map(class_folder, CLASSES), BACKGROUND])
    drawn = []
    for number, (folder, box, window) in enumerate(cuts, start=1):
        drawn.append(Drawn(np.asarray(window, np.float32), f"{number}", folder))
        if box is not None:
            drawn.append(Drawn(np.asarray(box, np.float32), "", folder, emphasis=True))
    top = draw_detections(image, drawn, colors=colors)
    columns = max(1, (top.shape[1] + _GAP) // (_TILE + _GAP))
    rows = -(-len(patches) // columns)
    shape = (top.shape[0] + rows * (_TILE + _GAP), top.shape[1], 3)
    page = np.full(shape, 255, np.uint8)
    page[: top.shape[0]] = top
    side = min(_TILE, top.shape[1])
    for index, (patch, (folder, _, _)) in enumerate(zip(patches, cuts, strict=True)):
        tile = np.asarray(cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
        frame = Drawn(np.array([0, 0, side, side], np.float32), f"{index + 1} {folder}", folder)
        y = top.shape[0] + _GAP + index // columns * (_TILE + _GAP)
        x = index % columns * (_TILE + _GAP)
        page[y : y + side, x : x + side] = draw_detections(tile, [frame], colors=colors)
    return page
