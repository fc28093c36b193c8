"""In how many directions features spread: RankMe, which needs no labels.

Garrido et al. 2023, "RankMe: Assessing the downstream performance of pretrained self-supervised
representations by their rank" (arXiv:2210.02885), equation 1: exp of the entropy of
p_k = sigma_k / (sum of all sigma) + eps.
"""

from __future__ import annotations

import numpy as np

from tk.train.ssl.probes.features import Features, check_features

EPS = 1e-7
"""Added to every p_k, as in the paper."""


def rank_me(features: Features) -> float:
    """Effective rank of features.

    They are not centred, as in the paper; it cannot exceed the number of pictures, so compare
    figures of equally many, and of more pictures than there are features.

    Args:
        features: (N, D), any real type.

    Returns:
        1 (all pictures in one direction) to min(N, D), a little more by eps; 1 when all are 0.

    Raises:
        TkError: another shape.
        CheckFailed: NaN or infinity.
    """
    check_features(features)
    rows = np.asarray(features, np.float64)
    sigmas = np.linalg.svd(rows, compute_uv=False)
    total = sigmas.sum()
    if total == 0:
        return 1.0
    shares = sigmas / total + EPS
    return float(np.exp(-(shares * np.log(shares)).sum()))
