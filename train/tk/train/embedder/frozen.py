"""What a frozen backbone says of every crop: computed once, read in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.preprocess import Image, spec_to_json
from tk.train.embedder.augment import Augment
from tk.train.embedder.cache import Cache
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.data import CropFile, Picture
from tk.train.embedder.features import bytes_needed, cache_features, most_views, weights_digest
from tk.train.embedder.model import EmbedNet
from tk.train.run.device import uses_bfloat16
from tk.train.run.distributed import barrier, rank, world
from tk.train.run.folder import library_versions
from tk.train.run.sampling import sample_rng

FOLDER = "features"


class FrozenFeatures:
    """Features of K augmented views of each training crop, and of the held-out crops.

    View v of a crop is the canvas that epoch v would draw without this cache; epoch e reads view
    e mod K. So with K of at least the number of epochs nothing is lost, and with less the views
    repeat.

    Args:
        config: of the run.
        model: its backbone is on `device` and in eval mode.
        augment: makes the training canvases.
        train: training pictures.
        held: `val` and `test` -> canvases.

    Raises:
        TkError: the features would take more than `--feature_gb`, or than the disk has.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        model: EmbedNet,
        augment: Augment,
        train: Cache[Picture],
        held: dict[str, Cache[Image]],
        device: torch.device,
    ) -> None:
        self.config, self.model, self.augment = config, model, augment
        self.pictures, self.device = train, device
        self.views = config.feature_views
        self.half = uses_bfloat16(config.precision, device)
        self._check_size(len(train), sum(map(len, held.values())))
        self.key = {
            "weights": weights_digest(model.backbone),
            "model_id": config.model_id,
            "image_spec": spec_to_json(augment.image_spec),
            "crop_spec": spec_to_json(augment.crop_spec),
            "bfloat16": self.half,
            "versions": library_versions(),
        }
        own: dict[str, Any] = {"seed": config.seed, "aug": config.aug, "views": self.views}
        own |= {"mask_share": config.mask_share()}
        self._train = self._cache("train", train.crops, self._view, own)
        self._held = {
            name: self._cache(name, cache.crops, cache.__getitem__, {})
            for name, cache in held.items()
        }

    def train(self, index: int, epoch: int) -> NDArray[np.float32]:
        """Feature of a training crop in an epoch: (F,) float32."""
        return np.array(self._train[index * self.views + epoch % self.views])

    def held(self, split: str) -> NDArray[np.float32]:
        """Features of `val` or `test`: (N, F) float32."""
        return self._held[split]

    def _check_size(self, train: int, held: int) -> None:
        needed = bytes_needed(train * self.views + held, self.model.feature_size)
        bound = self.config.feature_gb
        if needed > bound * 1e9:
            fits = most_views(train, self.model.feature_size, bound)
            raise TkError(
                f"features of {self.views} views of {train} crops need more disk than they may",
                expected=f"at most {bound:g} GB (--feature_gb)",
                found=f"{needed / 1e9:.2f} GB",
                fix=f"--feature_views {fits}, or --feature_gb {needed / 1e9 * 1.01:.2f}",
            )

    def _view(self, row: int) -> Image:
        index, view = divmod(row, self.views)
        return self.augment(self.pictures[index], sample_rng(self.config.seed, view, index))

    def _cache(
        self, split: str, crops: list[CropFile], canvas: Callable[[int], Image], own: dict[str, Any]
    ) -> NDArray[np.float32]:
        views = self.views if split == "train" else 1
        return cache_features(
            self.config.out / FOLDER,
            split,
            rows=len(crops) * views,
            size=self.model.feature_size,
            key={**self.key, **own, "crops": files_digest(crops)},
            canvas=canvas,
            embed=self._embed,
            batch_size=self.config.batch_size,
            views=views,
            part=(rank(), world()),
            barrier=barrier,
        )

    def _embed(self, canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = torch.from_numpy(canvases).to(self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.half),
        ):
            return self.model.features(images).float().cpu().numpy()


def files_digest(crops: list[CropFile]) -> str:
    """Hash of names, sizes and times of the crops and their masks: an edited file changes it."""
    digest = hashlib.sha256()
    for crop in crops:
        for path in (crop.path, crop.mask):
            digest.update(_stamp(path).encode())
    return digest.hexdigest()


def _stamp(path: Path | None) -> str:
    if path is None:
        return "-\n"
    stat = path.stat()
    return f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
