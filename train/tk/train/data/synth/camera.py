"""What a camera does to a scene: uneven light, tint, blur, sensor noise, JPEG."""

from __future__ import annotations

from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])


def develop(rng: np.random.Generator, canvas: Image) -> bytes:
    """Turn a drawn scene into a photograph.

    Args:
        rng: source of every choice.
        canvas: (H, W, 3) uint8, RGB.

    Returns:
        a JPEG file of quality 60..95.
    """
    image = blur(rng, light(rng, canvas))
    image = sensor_noise(rng, image)
    quality = int(rng.integers(60, 96))
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def light(rng: np.random.Generator, image: Image) -> Image:
    """A slope of brightness over the scene, darker corners, a slight tint."""
    height, width = image.shape[:2]
    x, y = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 24))
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.28)
    gain = rng.uniform(0.85, 1.12) * (1 + slope * (np.cos(angle) * x + np.sin(angle) * y))
    gain *= 1 - rng.uniform(0, 0.14) * (x**2 + y**2)
    tint = 1 + rng.normal(0, 0.025, 3)
    grid = np.clip(gain[:, :, None] * tint * 128, 30, 255).astype(np.uint8)
    field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.multiply(image, field, scale=1 / 128), dtype=np.uint8)


def blur(rng: np.random.Generator, image: Image) -> Image:
    """The softness of a lens, now and then of a hand that moved."""
    relative = max(image.shape[:2]) / 640
    sigma = rng.uniform(0.25, 0.75) * relative**0.6
    if rng.random() < 0.1:
        sigma *= 1.8
    size = 2 * max(1, round(1.6 * sigma)) + 1
    return np.asarray(cv2.GaussianBlur(image, (size, size), sigma), dtype=np.uint8)


def sensor_noise(rng: np.random.Generator, image: Image) -> Image:
    """Gaussian noise of 1 to 6 grey levels, most of it the same in the three colours."""
    height, width = image.shape[:2]
    sigma = rng.uniform(1.0, 6.0)
    table = np.clip(np.round(_QUANTILES * sigma), -127, 127).astype(np.int8)
    raw = np.frombuffer(rng.bytes(height * width * 3), np.uint8).reshape(height, width, 3)
    return np.asarray(cv2.add(image, cv2.LUT(raw, table), dtype=cv2.CV_8U), dtype=np.uint8)
