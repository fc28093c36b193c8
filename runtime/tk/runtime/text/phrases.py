"""From token scores to phrases, exactly as `post_process_grounded_object_detection` does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def assemble_phrases(
    token_scores: NDArray[np.float32],
    ids: Sequence[int],
    threshold: float,
    limit: int,
    write: Callable[[Sequence[int]], str],
) -> list[str]:
    """Join the tokens above the threshold; dots and [SEP] among them stay, as in the library.

    Args:
        token_scores: (N, T) float32, 0..1, a column per token.
        ids: of the prompt, [CLS] first; at most T.
        threshold: tokens scored above it belong to the phrase.
        limit: columns of the library's scores (`max_text_len`): it blanks the first and the last
            of these, whatever the length of the prompt.
        write: ids -> text.

    Returns:
        N phrases; "" where no token is above the threshold.
    """
    above = np.asarray(token_scores)[:, : len(ids)] > np.float32(threshold)
    above[:, :1] = False
    above[:, limit - 1 :] = False
    known: dict[bytes, str] = {}
    phrases = []
    for row in above:
        key = row.tobytes()
        if key not in known:
            known[key] = write([ids[index] for index in np.flatnonzero(row)])
        phrases.append(known[key])
    return phrases
