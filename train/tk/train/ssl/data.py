"""Training data of a run: pictures without labels, crops of them, masks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor

from tk.runtime.errors import TkError
from tk.train.run.distributed import is_main
from tk.train.ssl.backbone.base import Backbone
from tk.train.ssl.block_masks import block_masks
from tk.train.ssl.config import SslConfig
from tk.train.ssl.multicrop import MultiCrop, MultiCropSpec, normalise
from tk.train.ssl.photos import Photos, find_photos

SHOWN = 10
"""So many broken files are named on the screen; the log has all."""


class SslData:
    """Pictures of a run and what is made of them.

    Args:
        backbone: says the patch size, and the mean and deviation it is used to.

    Attributes:
        photos: the usable pictures.
        spec: of their crops.
    """

    def __init__(self, config: SslConfig, backbone: Backbone) -> None:
        self.config = config
        _check_places(config)
        self.photos = find_photos(config.train_dir, ram_gb=config.dataset_cache_gb)
        _check_count(config, len(self.photos))
        self.grid = config.image_size // backbone.patch_size
        self.spec = _crop_spec(config, backbone, self.photos)
        self.crop = MultiCrop(self.spec)
        if is_main():
            self._tell()

    def _tell(self) -> None:
        """Say what is odd about the pictures."""
        for text in self.photos.skipped[:SHOWN]:
            print(f"left out: {text}", file=sys.stderr)
        if self.photos.skipped:
            print(f"{len(self.photos.skipped)} files left out", file=sys.stderr)
        small, side = self.photos.smaller_than(self.config.image_size), self.config.image_size
        if small:
            print(
                f"{small} of {len(self.photos)} pictures are smaller than --image-size {side}: "
                "their crops are enlarged",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self.photos)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Views of one picture.

        Returns:
            `global` (2, S, S, 3) and `local` (L, s, s, 3) uint8; `masks` (2, N) bool for iBOT.
        """
        views = self.crop(self.photos.read(index), rng)
        count, side = self.spec.global_count, self.spec.local_size
        small = np.stack(views[count:]) if views[count:] else np.empty((0, side, side, 3), np.uint8)
        sample: dict[str, Any] = {"global": np.stack(views[:count]), "local": small}
        if self.config.algorithm == "ibot":
            masks = block_masks(
                rng,
                (self.grid, self.grid),
                count,
                probability=self.config.mask_probability,
                ratio=self.config.mask_ratio,
                aspect=self.config.mask_aspect,
            )
            sample["masks"] = masks.reshape(count, -1)
        return sample

    def normalise(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The crops of a batch as the networks see them: (B, V, 3, h, w) float32."""
        crops = {name: normalise(batch[name], self.spec) for name in ("global", "local")}
        return {**batch, **crops}

    def canvases(self, images: Any) -> Tensor:
        """Pictures without augmentation: (N, 3, S, S) float32."""
        return normalise(torch.from_numpy(np.stack(images)), self.spec)


def _check_places(config: SslConfig) -> None:
    for folder in config.train_dir:
        if config.out.resolve().is_relative_to(folder.resolve()):
            raise TkError(
                f"the run folder {config.out} lies among the pictures of {folder}",
                fix="give an --output-dir beside the pictures",
            )


def _check_count(config: SslConfig, count: int) -> None:
    if config.batch_size > count:
        raise TkError(
            "a batch is larger than the data set",
            expected=f"--batch-size of at most {count}",
            found=str(config.batch_size),
        )


def _crop_spec(config: SslConfig, backbone: Backbone, photos: Photos) -> MultiCropSpec:
    used_to = resolve_model_data_config(backbone.vit)  # type: ignore[no-untyped-call]
    mean, std = used_to["mean"], used_to["std"]
    if config.aug_mean and config.aug_std:
        mean, std = config.aug_mean, config.aug_std
    elif config.aug_statistics == "data":
        mean, std = photos.statistics()
    blur = config.aug_gaussian_blur_prob
    return MultiCropSpec(
        global_size=config.image_size,
        local_size=config.local_size(backbone.patch_size),
        local_count=config.aug_local_crops,
        global_scale=config.aug_global_scale,
        local_scale=config.aug_local_scale,
        hflip_prob=config.aug_hflip_prob,
        vflip_prob=config.aug_vflip_prob,
        rotate_prob=config.aug_rotate_prob,
        color_jitter_prob=config.aug_color_jitter_prob,
        brightness=config.aug_brightness,
        contrast=config.aug_contrast,
        saturation=config.aug_saturation,
        hue=config.aug_hue,
        grayscale_prob=config.aug_grayscale_prob,
        gaussian_blur_prob=(1.0, 0.1, 0.5) if blur is None else blur,
        gaussian_blur_sigma=config.aug_gaussian_blur_sigma,
        solarize_prob=config.aug_solarize_prob,
        mean=mean,
        std=std,
    )
