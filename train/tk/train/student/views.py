"""One draw of the augmentation, seen by student and teacher at their own resolutions.

A teacher that answers to another crop than the student sees teaches noise (Beyer et al.,
"Knowledge distillation: a good teacher is patient and consistent", 2022, arXiv:2106.05237): so
geometry and colours are drawn once, on the larger canvas, and every network gets that picture at
its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tk.runtime.preprocess import CropSpec, Image, ImageSpec, fit
from tk.train.embedder.augment import Augment
from tk.train.embedder.data import Picture
from tk.train.ssl.multicrop import MultiCrop, MultiCropSpec

Kind = Literal["none", "light", "tools", "surface"]


class SharedViews:
    """Makes the same view of a picture for several canvases; equal generators, equal views.

    Args:
        kind: `none` (what evaluation sees), `light` or `tools` of the embedder, or `surface`: a
            part of the picture, mirrored both ways, with other brightness and contrast.
        area: least share of the picture's area that `surface` shows, 0..1.
        specs: the canvases, square.
    """

    def __init__(self, kind: Kind, area: float, specs: Sequence[ImageSpec]) -> None:
        self.specs = tuple(specs)
        self.largest = max(self.specs, key=lambda spec: spec.height)
        self._plain = kind == "none"
        self._crop = _surface(self.largest.height, area) if kind == "surface" else None
        warp = "none" if kind == "surface" else kind
        self._warp = Augment(warp, self.largest, CropSpec(), mask_share=0.0)

    def __call__(self, image: Image, rng: np.random.Generator) -> list[Image]:
        """Draw one view.

        Args:
            image: (H, W, 3) uint8 RGB.
            rng: the only source of random numbers.

        Returns:
            for every canvas (size, size, 3) uint8 RGB.
        """
        if self._plain:  # each from the picture itself, as at run time
            return [fit(spec, image)[0] for spec in self.specs]
        if self._crop is not None:
            drawn = self._crop(image, rng)[0]
        else:
            drawn = self._warp(Picture(image, None), rng)
        return [drawn if spec == self.largest else fit(spec, drawn)[0] for spec in self.specs]


def _surface(size: int, area: float) -> MultiCrop:
    """Rolled, printed or painted surfaces have no upright; their colour says little."""
    return MultiCrop(
        MultiCropSpec(
            global_size=size,
            global_count=1,
            local_count=0,
            global_scale=(area, 1.0),
            vflip_prob=0.5,
            color_jitter_prob=0.8,
            brightness=0.2,
            contrast=0.2,
            saturation=0.0,
            hue=0.0,
            grayscale_prob=0.0,
            gaussian_blur_prob=0.0,
            solarize_prob=0.0,
        )
    )
