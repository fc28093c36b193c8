"""Severstal's layout: names of files, sizes, classes.

The competition numbers its four classes and names none; the words below describe what they look
like. Folders are named by number, so that a label is the class's number less one.
"""

from __future__ import annotations

WIDTH, HEIGHT = 1600, 256
"""Size of the competition's pictures, pixels."""

TABLE, IMAGES = "train.csv", "train_images"
"""File of masks and folder of pictures in a data folder."""

CLASSES: dict[int, str] = {1: "pits", 2: "crack", 3: "scratch", 4: "scale"}
"""ClassId -> a word for it: pitted specks, fine cracks, abrasion streaks, rolled-in scale."""

BACKGROUND = "no_defect"
"""Folder of patches without a defect; it sorts behind the classes."""


def class_folder(class_id: int) -> str:
    """Name of the folder of a class's patches, `class_1` to `class_4`."""
    return f"class_{class_id}"


def class_label(class_id: int) -> str:
    """Number and word of a class, for pictures and tables."""
    return f"{class_id} {CLASSES[class_id]}"
