"""Features that the gate feeds to a head: those of the run it lies in, else random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import read_json

RANDOM_ROWS = 512
"""Random features where there are no real ones."""

LEVELS = 3
"""Folders above a head that are looked through: RUN/models/NAME/seed0.pth."""


def features_of(head: Path, backbone_sha256: str, length: int) -> tuple[NDArray[np.float32], str]:
    """Real features of the head's backbone, as `tk train distill` leaves them, or random ones.

    Args:
        head: its checkpoint.
        backbone_sha256: digest of the backbone, which the JSON file beside the features names.
        length: F.

    Returns:
        (n, F) float32, and where they come from.
    """
    for folder in list(head.resolve().parents)[:LEVELS]:
        for about in sorted(folder.glob("features*.json")):
            rows = about.with_suffix(".npy")
            if _digest(about) == backbone_sha256 and rows.is_file():
                found = np.load(rows, mmap_mode="r", allow_pickle=False)
                if found.ndim == 2 and found.shape[1] == length and len(found):
                    return found, f"{rows.name} of the run, features of real images"
    rows_ = np.random.default_rng(0).standard_normal((RANDOM_ROWS, length), np.float32)
    return rows_, (
        "random ones of unit deviation, for no features of this backbone lie near the head "
        "(--images FILE.npy gives real ones)"
    )


def _digest(about: Path) -> str:
    """Digest of the backbone in a file beside features; "" where it says none."""
    try:
        content: Any = read_json(about)
    except TkError:
        return ""
    key = content.get("key") if isinstance(content, dict) else None
    return str(key.get("weights", "")) if isinstance(key, dict) else ""
