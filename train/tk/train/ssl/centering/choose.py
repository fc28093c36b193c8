"""`--centering NAME`."""

from __future__ import annotations

from tk.train.ssl.centering.base import Centering
from tk.train.ssl.centering.mean import MeanCentering
from tk.train.ssl.centering.none import NoCentering
from tk.train.ssl.centering.sinkhorn import SinkhornCentering
from tk.train.ssl.config import SslConfig


def make_centering(config: SslConfig, dim: int) -> Centering:
    """Build the centering of `dim` prototypes that the options name."""
    if config.centering == "mean":
        return MeanCentering(dim, config.centering_momentum)
    if config.centering == "sinkhorn":
        return SinkhornCentering(config.sinkhorn_iterations)
    return NoCentering()
