"""Work surfaces: wood, brushed metal, woven cloth, foam, concrete, cardboard, a cutting mat."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Field = NDArray[np.float32]
Colour = tuple[float, float, float]
Palette = tuple[tuple[Colour, Colour], ...]

_DETAIL = 1000  # surfaces are made at most this large, then enlarged


def noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int], *, smooth: bool = True
) -> Field:
    """(H, W) float32 in -1..1: random values on a grid of cells (rows, columns), enlarged."""
    rows, columns = (max(2, min(n, s)) for n, s in zip(cells, shape, strict=True))
    grid = rng.random((rows, columns), dtype=np.float32) * 2 - 1
    how = cv2.INTER_CUBIC if smooth else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grid, (shape[1], shape[0]), interpolation=how), dtype=np.float32)


def grain(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """(H, W) float32 in -1..1: a different value at every pixel."""
    raw = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape)
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    return np.asarray(cv2.LUT(raw, table), dtype=np.float32)


def _tint(value: Field, dark: Colour, bright: Colour) -> Image:
    """(H, W, 3) uint8: a field of about -1..1 as shades between two colours."""
    t = np.linspace(-0.15, 1.15, 256)[:, None]
    table = np.clip(np.asarray(dark) * (1 - t) + np.asarray(bright) * t, 0, 255).astype(np.uint8)
    code = cv2.convertScaleAbs(value, alpha=98, beta=128)
    np.clip(code, 0, 255, out=code)
    gray = cv2.merge([code, code, code])
    return np.asarray(cv2.LUT(gray, table.reshape(1, 256, 3)), dtype=np.uint8)


def _pick(
    rng: np.random.Generator, colours: tuple[tuple[Colour, Colour], ...]
) -> tuple[Colour, Colour]:
    dark, bright = colours[int(rng.integers(len(colours)))]
    shift = rng.normal(0, 7, 3) + rng.normal(0, 10)
    first, second = ((np.asarray(c) + shift).clip(4, 250).tolist() for c in (dark, bright))
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def wood(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Planks with grain along x."""
    h, w = shape
    value = 0.55 * noise(rng, shape, (h // 3, 6), smooth=False)
    value += 0.3 * noise(rng, shape, (h // 12, 9))
    value += 0.15 * noise(rng, shape, (h, w // 12), smooth=False)
    planks = int(rng.integers(1, 6))
    at = np.sort(rng.integers(0, h, planks))
    for i, row in enumerate(at):
        value[row:] += np.float32(rng.uniform(-0.25, 0.25))
        if i or planks > 2:
            value[row : row + max(1, h // 200)] -= 0.9
    colours: Palette = (
        ((92, 58, 32), (168, 118, 74)), ((130, 92, 56), (214, 172, 122)),
        ((54, 38, 28), (108, 78, 56)), ((118, 108, 98), (182, 170, 156)),
    )  # fmt: skip
    return _tint(value, *_pick(rng, colours))


def metal(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """A brushed or ground plate with scratches."""
    h, w = shape
    value = 0.35 * noise(rng, shape, (h, 8), smooth=False) + 0.5 * noise(rng, shape, (3, 4))
    image_value = np.ascontiguousarray(value)
    for _ in range(int(rng.integers(4, 25))):
        x, y, length = rng.integers(0, w), rng.integers(0, h), rng.uniform(0.03, 0.3) * w
        angle = rng.uniform(0, np.pi)
        end = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        shade = float(rng.uniform(-0.8, 0.9))
        cv2.line(image_value, (int(x), int(y)), end, shade, 1, cv2.LINE_8)
    colours: Palette = (
        ((104, 108, 112), (168, 172, 176)), ((66, 72, 76), (116, 124, 130)),
        ((42, 74, 62), (82, 118, 100)), ((44, 60, 86), (84, 104, 138)),
        ((110, 62, 48), (160, 106, 86)),
    )  # fmt: skip
    return _tint(image_value, *_pick(rng, colours))


def fabric(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Woven cloth, sometimes with stripes, with soft folds."""
    h, w = shape
    pitch = rng.uniform(4, 9) * max(h, w) / 640
    x = np.arange(w, dtype=np.float32)[None] * np.float32(2 * np.pi / pitch)
    y = np.arange(h, dtype=np.float32)[:, None] * np.float32(2 * np.pi / pitch)
    value = np.float32(0.3) * np.sin(x) * np.sin(y) + np.float32(0.12) * np.sin(x + y)
    value = value + 0.25 * grain(rng, shape) + 0.45 * noise(rng, shape, (5, 6))
    if rng.random() < 0.3:
        value += np.float32(0.5) * np.sign(np.sin(x / rng.uniform(9, 22))).astype(np.float32)
    colours: Palette = (
        ((44, 58, 92), (92, 112, 154)), ((150, 142, 126), (214, 206, 190)),
        ((96, 38, 36), (158, 80, 74)), ((58, 64, 50), (112, 118, 92)), ((38, 38, 42), (84, 84, 90)),
    )  # fmt: skip
    return _tint(value.astype(np.float32), *_pick(rng, colours))


def foam(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Closed-cell foam of a tool tray: even colour, fine pores."""
    h, w = shape
    value = 0.3 * grain(rng, shape) + 0.35 * noise(rng, shape, (h // 4, w // 4), smooth=False)
    value += 0.12 * noise(rng, shape, (4, 5))
    colours: Palette = (
        ((30, 31, 34), (62, 63, 68)), ((24, 62, 122), (50, 98, 168)),
        ((196, 150, 30), (238, 196, 70)),
        ((70, 74, 78), (112, 116, 120)), ((128, 34, 32), (172, 62, 58)),
    )  # fmt: skip
    return _tint(value, *_pick(rng, colours))


def concrete(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Cement floor or stone: blotches of several sizes, a few dark specks."""
    h, w = shape
    value = 0.5 * noise(rng, shape, (6, 8)) + 0.35 * noise(rng, shape, (h // 20, w // 20))
    value += 0.3 * noise(rng, shape, (h // 3, w // 3), smooth=False) + 0.3 * grain(rng, shape)
    value -= 1.1 * (noise(rng, shape, (h // 6, w // 6)) > 0.93)
    colours: Palette = (
        ((112, 110, 106), (172, 170, 164)), ((82, 82, 82), (136, 134, 130)),
        ((140, 130, 116), (196, 186, 170)),
    )  # fmt: skip
    return _tint(value, *_pick(rng, colours))


def cardboard(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Packing card or paper: faint flutes, a fold or two."""
    h, w = shape
    value = 0.22 * noise(rng, shape, (h, w // 25), smooth=False) + 0.2 * noise(rng, shape, (5, 6))
    value += np.float32(0.1) * np.sin(np.arange(h, dtype=np.float32)[:, None] * np.float32(0.35))
    for _ in range(int(rng.integers(0, 3))):
        column = int(rng.integers(0, w))
        value[:, column : column + max(2, w // 250)] -= np.float32(rng.uniform(-0.4, 0.5))
    colours: Palette = (
        ((150, 116, 80), (196, 158, 116)), ((196, 194, 188), (238, 236, 230)),
        ((168, 160, 140), (222, 214, 194)),
    )  # fmt: skip
    return _tint(value.astype(np.float32), *_pick(rng, colours))


def cutting_mat(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """A ruled mat: one colour with a thin grid."""
    h, w = shape
    value = 0.12 * noise(rng, shape, (5, 6)) + 0.15 * grain(rng, shape)
    step = int(rng.uniform(0.04, 0.09) * max(h, w))
    for start in range(int(rng.integers(0, step)), w, step):
        value[:, start : start + max(1, w // 500)] += 0.9
    for start in range(int(rng.integers(0, step)), h, step):
        value[start : start + max(1, w // 500)] += 0.9
    colours: Palette = (
        ((14, 74, 62), (60, 128, 110)), ((30, 40, 70), (86, 98, 138)),
        ((48, 48, 50), (110, 110, 112)),
    )  # fmt: skip
    return _tint(value, *_pick(rng, colours))


Surface = Callable[[np.random.Generator, tuple[int, int]], Image]
SURFACES: tuple[Surface, ...] = (wood, wood, metal, fabric, foam, concrete, cardboard, cutting_mat)
"""One is drawn at random; wood counts twice, for benches are of wood."""


def surface(rng: np.random.Generator, height: int, width: int) -> Image:
    """A work surface that fills a scene.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    make = SURFACES[int(rng.integers(len(SURFACES)))]
    upright = rng.random() < 0.5
    scale = min(1.0, _DETAIL / max(height, width))
    small = (max(32, round(height * scale)), max(32, round(width * scale)))
    image = make(rng, small[::-1] if upright else small)
    if upright:
        image = np.ascontiguousarray(image.transpose(1, 0, 2))
    if small != (height, width):
        image = np.asarray(
            cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8
        )
    return image
