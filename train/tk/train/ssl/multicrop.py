"""Multi-crop: several global and local views of one picture (beside `embedder.augment` the only
module that knows albumentations).

SwAV introduced the multi-crop (Caron et al. 2020, arXiv:2006.09882); the views, their order and
their probabilities are those of DINO (Caron et al. 2021, arXiv:2104.14294, appendix A, and
`DataAugmentationDINO` of its code): the first global view is always blurred, the second rarely but
sometimes solarized, local views half of the time.

Crops leave here as uint8 with channels last and are normalised where the model is, by `normalise`:
a quarter of the bytes go from worker to training process to device, and the conversion, a quarter
of the work of making the crops on a CPU, costs a GPU nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tk.runtime.errors import TkError

Image = NDArray[np.uint8]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
RATIO = (3 / 4, 4 / 3)
"""Width / height of a crop before it is made square, log-uniform."""

SKIPPED = 1.4
"""Bilinear interpolation makes a picture so many times smaller without visible aliasing."""


@dataclass(frozen=True)
class MultiCropSpec:
    """What the views of a picture are.

    Attributes:
        global_size, local_size: side of the views, pixels.
        global_count, local_count: how many; the second and later global views are alike.
        global_scale, local_scale: share of the picture's area that a view shows, uniform.
        hflip_prob, vflip_prob: mirrored left to right, upside down.
        rotate_prob: turned by 0, 90, 180 or 270 degrees, equally likely.
        color_jitter_prob: brightness, contrast, saturation and hue changed, in random order.
        brightness, contrast, saturation: factor of 1 - x to 1 + x, never below 0.
        hue: shift of -x to x of the circle; 0..0.5.
        grayscale_prob: without colour.
        gaussian_blur_prob: of the first global view, the other global views, the local views; one
            number stands for all three.
        gaussian_blur_sigma: standard deviation of the blur, pixels, uniform.
        solarize_prob: of all global views but the first; values from 128 are inverted.
        mean, std: of the channels R, G, B, in units of 255.
    """

    global_size: int = 224
    local_size: int = 96
    global_count: int = 2
    local_count: int = 8
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    hflip_prob: float = 0.5
    vflip_prob: float = 0.0
    rotate_prob: float = 0.0
    color_jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_prob: float = 0.2
    gaussian_blur_prob: float | Triple = (1.0, 0.1, 0.5)
    gaussian_blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_prob: float = 0.2
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        _check(self)

    def blur_probs(self) -> Triple:
        """Probability of a blur: first global view, other global views, local views."""
        probs = self.gaussian_blur_prob
        return (probs, probs, probs) if isinstance(probs, int | float) else probs


class MultiCrop:
    """Makes the views of a picture; equal generators give equal views, in any process."""

    def __init__(self, spec: MultiCropSpec) -> None:
        self.spec = spec
        first, other, local = spec.blur_probs()
        large = spec.global_size, spec.global_scale
        self._first = _view(spec, *large, blur=first, solarize=0.0)
        self._other = _view(spec, *large, blur=other, solarize=spec.solarize_prob)
        self._local = _view(spec, spec.local_size, spec.local_scale, blur=local, solarize=0.0)

    def __call__(self, image: Image, rng: np.random.Generator) -> list[Image]:
        """Make the views of one picture.

        Args:
            image: (H, W, 3) uint8 RGB of any size; small ones are enlarged.
            rng: the only source of random numbers.

        Returns:
            the global views, then the local ones: (size, size, 3) uint8 RGB each.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise TkError(
                "multi-crop cannot use this picture",
                expected="(H, W, 3) uint8",
                found=f"{image.shape} {image.dtype}",
            )
        # `set_random_seed` would give every transform the same numbers.
        other_rng = random.Random(int(rng.integers(2**63)))
        for view in (self._first, self._other, self._local):
            view.set_random_state(rng, other_rng)
        spec = self.spec
        views = [self._first] + [self._other] * (spec.global_count - 1)
        views += [self._local] * spec.local_count
        return [np.ascontiguousarray(view(image=image)["image"]) for view in views]


def normalise(crops: Tensor, spec: MultiCropSpec) -> Tensor:
    """Turn crops into what a model sees, on the device where they are.

    Args:
        crops: (..., h, w, 3) uint8.
        spec: its mean and std.

    Returns:
        (..., 3, h, w) float32: (x / 255 - mean) / std, contiguous.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=crops.device).view(3, 1, 1) * 255
        for values in (spec.mean, spec.std)
    )
    # The small type is moved, not the large one: less memory traffic.
    planes = crops.movedim(-1, -3).contiguous()
    return planes.float().sub_(mean).div_(std)


def _view(
    spec: MultiCropSpec, size: int, scale: tuple[float, float], *, blur: float, solarize: float
) -> A.Compose:
    jitter = A.ColorJitter(
        brightness=spec.brightness,
        contrast=spec.contrast,
        saturation=spec.saturation,
        hue=spec.hue,
        p=spec.color_jitter_prob,
    )
    steps = [
        A.HorizontalFlip(p=spec.hflip_prob),
        A.VerticalFlip(p=spec.vflip_prob),
        A.RandomRotate90(p=spec.rotate_prob),
        jitter,
        A.ToGray(p=spec.grayscale_prob),
        # Limit 0: as many taps as the deviation asks for.
        A.GaussianBlur(blur_limit=0, sigma_limit=spec.gaussian_blur_sigma, p=blur),
        A.Solarize(threshold_range=(128 / 255, 128 / 255), p=solarize),
    ]
    crop = _Crop((size, size), scale=scale, ratio=RATIO)
    return A.Compose([crop, *(step for step in steps if step.p > 0)])


class _Crop(A.RandomResizedCrop):  # type: ignore[misc]
    """Random crops, resized by `resize`."""

    def apply(self, img: Image, crop_coords: tuple[int, int, int, int], **params: Any) -> Image:
        """Cut out the box left, top, right, bottom and bring it to size."""
        left, top, right, bottom = crop_coords
        return resize(img[top:bottom, left:right], self.size[0])


def resize(image: Image, side: int) -> Image:
    """Bring a crop to a square, nearly as Pillow's bicubic does, which averages what it skips.

    OpenCV's bicubic and bilinear skip it. Bilinear is still nearer to Pillow's than OpenCV's
    averaging (INTER_AREA) up to 1.4 times smaller, at a sixth of the cost; from there on, bilinear
    to twice the side and then the mean of 2 x 2 is as near, at half the cost.

    Args:
        image: (H, W, 3) uint8.
        side: pixels.

    Returns:
        (side, side, 3) uint8.
    """
    factor = max(image.shape[:2]) / side
    if factor <= 1:
        return _resized(image, side, cv2.INTER_CUBIC)
    if factor <= SKIPPED:
        return _resized(image, side, cv2.INTER_LINEAR)
    if factor <= 2 * SKIPPED:
        image = _resized(image, 2 * side, cv2.INTER_LINEAR)
    return _resized(image, side, cv2.INTER_AREA)


def _resized(image: Image, side: int, how: int) -> Image:
    return np.asarray(cv2.resize(image, (side, side), interpolation=how), np.uint8)


def _check(spec: MultiCropSpec) -> None:
    """Refuse values outside their ranges.

    Raises:
        TkError: names the field.
    """
    for field in fields(spec):
        name, value = field.name, getattr(spec, field.name)
        values = value if isinstance(value, tuple) else (value,)
        expected = _expected(name, values)
        if expected:
            raise TkError(f"{name} of the crops", expected=expected, found=str(value))


def _expected(name: str, values: tuple[Any, ...]) -> str:
    """What a field should be, when it is not."""
    low, high = min(values), max(values)
    ranges: dict[str, tuple[bool, str]] = {
        "_prob": (0 <= low and high <= 1, "0..1"),
        "_size": (low >= 1, "1 or more"),
        "_scale": (0 < low and high <= 1 and values[0] == low, "0 < from <= to <= 1"),
        "_sigma": (0 < low and values[0] == low, "0 < from <= to"),
        "global_count": (low >= 1, "1 or more"),
        "local_count": (low >= 0, "0 or more"),
        "std": (low > 0, "above 0"),
        "hue": (0 <= low and high <= 0.5, "0..0.5"),
        "brightness": (low >= 0, "0 or more"),
        "contrast": (low >= 0, "0 or more"),
        "saturation": (low >= 0, "0 or more"),
    }
    for ending, (fits, expected) in ranges.items():
        if name.endswith(ending) and not fits:
            return expected
    return ""
