"""How good the features are while they are learned: nearest neighbours, linear probe, rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.linear_model  # noqa: F401 - now: its import draws from the generator we seed
import torch
from numpy.typing import NDArray
from torch import Tensor

from tk.runtime.images import read_image
from tk.runtime.preprocess import Image, ImageSpec, fit
from tk.train.run.distributed import gather_shares, share, world
from tk.train.ssl.config import SslConfig
from tk.train.ssl.data import SslData
from tk.train.ssl.labelled import Labelled, find_labelled
from tk.train.ssl.probes.knn import knn_accuracy
from tk.train.ssl.probes.linear import linear_accuracy
from tk.train.ssl.probes.rank import rank_me

NEIGHBOURS = 20
RANK_SAMPLE = 2048
"""Most training pictures whose features are looked at for the rank."""

Encode = Callable[[Tensor], Tensor]
"""(N, 3, S, S) normalised pictures -> (N, D) features."""


class Judge:
    """Measures a backbone.

    Attributes:
        labelled: pictures with classes, if there is a --probe-dir.
        best_metric: the figure that says which weights are best.
    """

    def __init__(self, config: SslConfig, data: SslData) -> None:
        self.config, self.data = config, data
        self.spec = ImageSpec(config.image_size, config.image_size, "stretch")
        self.labelled = find_labelled(config.probe_dir) if config.probe_dir else None
        self.best_metric = "knn" if self.labelled else "rank_me"
        # The same pictures whatever the seed, so that ranks of runs can be compared.
        order = np.random.default_rng(0).permutation(len(data))
        self.sample = np.sort(order[:RANK_SAMPLE])

    def measure(self, encode: Encode, device: torch.device) -> dict[str, float]:
        """Figures of an encoder; all processes call it.

        Returns:
            `rank_me` of the training pictures; `knn` and `linear`, 0..1, of the labelled ones.
        """
        figures = {"rank_me": self.rank(encode, device)}
        if self.labelled:
            files = self.labelled.files
            rows = self._features(encode, device, len(files), lambda i: read_image(files[i]))
            figures = probe(self.labelled, rows) | figures
        return figures

    def rank(self, encode: Encode, device: torch.device) -> float:
        """Effective rank of the features of training pictures; all processes call it."""
        read = self.data.photos.read
        places = self.sample
        return rank_me(self._features(encode, device, len(places), lambda i: read(int(places[i]))))

    def _features(
        self, encode: Encode, device: torch.device, count: int, read: Callable[[int], Image]
    ) -> NDArray[np.float32]:
        """(count, D) float32; every process computes its share."""
        few = count < world()  # then a share may be empty, which nothing can be learned from
        mine, rows = list(range(count) if few else share(count)), []
        batch = self.config.batch_size
        # As often in every process, for a sharded network computes in all of them together.
        for start in range(0, count if few else len(range(0, count, world())), batch):
            part = mine[start : start + batch]
            canvases = self.data.canvases([fit(self.spec, read(i))[0] for i in part or mine[:1]])
            rows.append(encode(canvases.to(device)).float().cpu().numpy()[: len(part)])
        found = np.concatenate(rows)
        return found if few else gather_shares(found, count)

    def facts(self) -> dict[str, str]:
        """What the labelled pictures are; a resume is refused when it differs."""
        return {"probe": self.labelled.digest()} if self.labelled else {}


def probe(labelled: Labelled, rows: NDArray[Any]) -> dict[str, float]:
    """Nearest neighbours and linear probe of (N, D) features of the labelled pictures."""
    asked, labels = labelled.asked, labelled.labels
    parts = rows[~asked], labels[~asked], rows[asked], labels[asked]
    return {"knn": knn_accuracy(*parts, k=NEIGHBOURS), "linear": linear_accuracy(*parts)}
