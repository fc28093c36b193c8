"""Which tokens of a prompt see each other: a phrase sees itself, and nothing of other phrases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DELIMITERS: dict[str, int] = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Tokens that end a phrase. The ids are written into the library and into the trained weights: a
vocabulary that numbers them otherwise would silently break the masks."""


def phrase_masks(ids: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Masks and positions as the library makes them (`generate_masks_with_special_tokens_…`).

    Args:
        ids: T token ids, [CLS] first, [SEP] last, padding after it.

    Returns:
        mask: (T, T) bool, row sees column.
        positions: (T,) int32, place of a token in its phrase, from 0.
    """
    count = len(ids)
    mask = np.eye(count, dtype=np.bool_)
    positions = np.zeros(count, np.int32)
    start = 0
    for place in np.flatnonzero(np.isin(ids, list(DELIMITERS.values()))):
        stop = int(place) + 1
        # A phrase that would end with the first or the last token is [CLS] or [SEP]: no phrase.
        if 0 < place < count - 1:
            mask[start:stop, start:stop] = True
            positions[start:stop] = np.arange(stop - start)
        start = stop
    return mask, positions
