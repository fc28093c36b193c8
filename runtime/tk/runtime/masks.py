"""Masks: the pixels of a box in an image, made from logits and coded as runs without a full frame.

Run-length codes describe the full image: row-major lists that begin with zeros, and COCO's
compressed column-major strings. Decoders check before they fill memory: codes come from files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from tk.runtime.errors import TkError

Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BoxMask:
    """A mask known inside one region of its image and false outside.

    Args:
        x: left edge of the region, image pixels.
        y: top edge of the region, image pixels.
        pixels: (h, w) bool, the region; it lies inside the image.
        height: height of the full image, pixels.
        width: width of the full image, pixels.
    """

    x: int
    y: int
    pixels: Bits
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.bool_:
            raise ValueError(
                f"mask pixels are {self.pixels.dtype} {self.pixels.shape}, not bool 2-D"
            )
        bottom, right = self.y + self.pixels.shape[0], self.x + self.pixels.shape[1]
        if min(self.x, self.y) < 0 or bottom > self.height or right > self.width:
            raise ValueError(
                f"mask region x {self.x}..{right}, y {self.y}..{bottom} leaves the image "
                f"{self.width}x{self.height}"
            )

    @property
    def area(self) -> int:
        """Number of set pixels."""
        return int(np.count_nonzero(self.pixels))

    def tight_box(self) -> npt.NDArray[np.float32] | None:
        """Smallest box around the set pixels.

        Returns:
            (4,) float32, xyxy, image pixels, half-open; None when no pixel is set.
        """
        rows = np.flatnonzero(self.pixels.any(axis=1))
        if not len(rows):
            return None
        columns = np.flatnonzero(self.pixels[rows[0] : rows[-1] + 1].any(axis=0))
        left, top = self.x + columns[0], self.y + rows[0]
        right, bottom = self.x + columns[-1] + 1, self.y + rows[-1] + 1
        return np.array([left, top, right, bottom], np.float32)

    def full(self) -> Bits:
        """Return the mask of the whole image, (H, W) bool."""
        return self.crop(0, 0, self.width, self.height)

    def crop(self, x0: int, y0: int, x1: int, y1: int) -> Bits:
        """Cut a window out of the image.

        Args:
            x0: left edge, image pixels.
            y0: top edge, image pixels.
            x1: right edge, image pixels, not included.
            y1: bottom edge, image pixels, not included.

        Returns:
            (y1 - y0, x1 - x0) bool, a copy.
        """
        if not (0 <= x0 <= x1 <= self.width and 0 <= y0 <= y1 <= self.height):
            raise ValueError(f"window {(x0, y0, x1, y1)} leaves {self.width}x{self.height}")
        out = np.zeros((y1 - y0, x1 - x0), np.bool_)
        h, w = self.pixels.shape
        left, right = max(x0, self.x), min(x1, self.x + w)
        top, bottom = max(y0, self.y), min(y1, self.y + h)
        if left < right and top < bottom:
            part = self.pixels[top - self.y : bottom - self.y, left - self.x : right - self.x]
            out[top - y0 : bottom - y0, left - x0 : right - x0] = part
        return out


def upsample_logits(
    logits: npt.NDArray[np.float32],
    frame: npt.NDArray[np.float32],
    region: npt.NDArray[np.integer],
    image_hw: tuple[int, int],
) -> BoxMask:
    """Bring logits to image pixels inside one region only, and keep those above 0.

    Bilinear with half-pixel centres and replicated edges, as `cv2.resize` and PyTorch with
    `align_corners=False`: first across, then down, where whole rows are added. `cv2.warpAffine`
    would be one call, but OpenCV 4 rounds its coordinates to 1/32 of a logit, which moves the edge
    of the mask; two matrix products would start the threads of a BLAS.

    Args:
        logits: (h, w) float32; above 0 is inside the object.
        frame: (4,) float32, xyxy: the rectangle of the image that the logits cover, in pixel-edge
            coordinates; it may reach beyond the image.
        region: (4,) int, xyxy, image pixels, half-open: where the mask is wanted.
        image_hw: height and width of the image, pixels.

    Returns:
        The mask; false outside the region and where a pixel's centre is outside the frame.
    """
    height, width = image_hw
    left, top, right, bottom = (float(edge) for edge in frame)
    x0, x1 = _span(int(region[0]), int(region[2]), left, right, width)
    y0, y1 = _span(int(region[1]), int(region[3]), top, bottom, height)
    if x0 == x1 or y0 == y1:
        return BoxMask(x0, y0, np.zeros((y1 - y0, x1 - x0), np.bool_), height, width)
    top_row, next_row, down = _neighbours(logits.shape[0], y0, y1, top, bottom)
    left_column, next_column, across = _neighbours(logits.shape[1], x0, x1, left, right)
    first = top_row[0]
    # An infinite logit times a weight of 0 would be NaN.
    part = np.nan_to_num(logits[first : next_row[-1] + 1], nan=-1.0, posinf=1e4, neginf=-1e4)
    wide = part[:, left_column] * (1 - across) + part[:, next_column] * across
    values = wide[top_row - first] * (1 - down)[:, None]
    values += wide[next_row - first] * down[:, None]
    return BoxMask(x0, y0, values > 0, height, width)


def _span(start: int, stop: int, low: float, high: float, size: int) -> tuple[int, int]:
    """Cut start..stop to the image and to the pixels whose centres lie in low..high."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the frame of a mask has an edge that is not finite: {low}, {high}")
    start = min(max(start, 0, math.ceil(low - 0.5)), size)
    stop = min(max(stop, start), size)
    return start, max(start, min(stop, math.ceil(high - 0.5)))


def _neighbours(
    count: int, start: int, stop: int, low: float, high: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The two logits between which each output pixel of one axis lies.

    Args:
        count: logits along the axis, which cover low..high.
        start: first output pixel.
        stop: one past the last output pixel.
        low: edge where the first logit begins, image pixels.
        high: edge where the last logit ends, image pixels.

    Returns:
        (stop - start,) each: int64 index before, int64 index after, float32 weight of the latter.
    """
    centres = (np.arange(start, stop) + 0.5 - low) * (count / (high - low)) - 0.5
    centres = np.clip(centres, 0, count - 1)
    before = centres.astype(np.int64)
    after = np.minimum(before + 1, count - 1)
    return before, after, (centres - before).astype(np.float32)


def rle_row_major(mask: BoxMask) -> list[int]:
    """Lengths of the runs of the full image, row by row, beginning with zeros.

    Returns:
        Counts that sum to height * width; the first is 0 when the first pixel is set.
    """
    edges = _edges(mask.pixels, mask.x, mask.y, mask.width)
    counts: list[int] = _counts(edges, mask.height * mask.width).tolist()
    return counts


def decode_row_major(size: Sequence[int], counts: Sequence[int]) -> Bits:
    """Fill the full mask from its runs.

    Args:
        size: height and width, pixels.
        counts: lengths of the runs, zeros first, summing to height * width.

    Returns:
        (H, W) bool.

    Raises:
        TkError: size or counts are not whole numbers, or do not fit together.
    """
    height, width = checked_size(size)
    return _fill(checked_counts(counts, height * width)).reshape(height, width)


def coco_rle(mask: BoxMask) -> dict[str, Any]:
    """Encode as COCO's compressed run lengths.

    Returns:
        `{"size": [height, width], "counts": text}`, column by column, as pycocotools reads it.
    """
    edges = _edges(mask.pixels.T, mask.y, mask.x, mask.height)
    counts = _counts(edges, mask.height * mask.width)
    size = [mask.height, mask.width]
    packed = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
    return {"size": size, "counts": packed["counts"].decode("ascii")}


def decode_coco(rle: Mapping[str, Any]) -> Bits:
    """Fill the full mask from COCO run lengths, compressed (text or bytes) or not (a list).

    pycocotools trusts its input and writes past its memory when counts are wrong; this does not.

    Args:
        rle: `{"size": [height, width], "counts": ...}`.

    Returns:
        (H, W) bool, a transposed view: column by column in memory, as pycocotools gives it.

    Raises:
        TkError: the string or the counts are broken, or do not fit the size.
    """
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise TkError("a COCO mask lacks `size` or `counts`", found=f"{rle!r:.80}")
    height, width = checked_size(rle["size"])
    counts = rle["counts"]
    runs = _unpack(counts) if isinstance(counts, (str, bytes)) else counts
    return _fill(checked_counts(runs, height * width)).reshape(width, height).T


def checked_size(size: Any) -> tuple[int, int]:
    """Return (height, width) when `size` is that, else raise TkError."""
    whole = isinstance(size, (list, tuple)) and all(type(side) is int for side in size)
    if not whole or len(size) != 2 or min(size) < 0:
        raise TkError(
            "the size of a mask is wrong", expected="[height, width]", found=f"{size!r:.80}"
        )
    return size[0], size[1]


def checked_counts(counts: Any, total: int) -> npt.NDArray[np.int64]:
    """Check run lengths.

    Args:
        counts: whole numbers, at least 0.
        total: what they must sum to, pixels.

    Returns:
        (R,) int64.

    Raises:
        TkError: they are not that.
    """
    if not isinstance(counts, (list, tuple, np.ndarray)):
        raise TkError("the runs of a mask are not a list", found=f"{counts!r:.80}")
    try:
        runs = np.asarray(counts) if len(counts) else np.zeros(0, np.int64)
    except ValueError:
        runs = np.zeros(0, np.object_)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise TkError(
            "the runs of a mask are not whole numbers",
            expected="a list of integers",
            found=f"{counts!r:.80}",
        )
    if len(runs) and (runs.min() < 0 or runs.sum(dtype=np.float64) != total):
        raise TkError(
            "the runs of a mask do not fill its size",
            expected=f"counts from 0 that sum to {total}",
            found=f"counts from {runs.min()} that sum to {runs.sum(dtype=np.float64):.0f}",
        )
    if not len(runs) and total:
        raise TkError("a mask has no runs", expected=f"counts that sum to {total}")
    return runs.astype(np.int64)


def _edges(pixels: Bits, x: int, y: int, width: int) -> npt.NDArray[np.int64]:
    """Where runs of set pixels start and stop, by turns, in the flat image.

    Args:
        pixels: (h, w) bool, the region.
        x: column of the region in the image.
        y: row of the region in the image.
        width: length of an image row.

    Returns:
        (2R,) int64, ascending.
    """
    h, w = pixels.shape
    # A row ends with a false pixel so that its last run stops there; where the region is as wide
    # as the image, rows touch and a run goes on in the next one.
    step = w if w == width else w + 1
    flat = np.zeros(h * step + 2, np.bool_)
    flat[1:-1].reshape(h, step)[:, :w] = pixels
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    row, column = np.divmod(edges, step) if step else (edges, edges)
    return (row + y) * width + column + x


def _counts(edges: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = np.diff(edges, prepend=0, append=total)
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def _fill(runs: npt.NDArray[np.int64]) -> Bits:
    """Flat mask from checked runs; only the part between the first and last set pixel is filled."""
    ends = np.cumsum(runs)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.bool_)
    inner = runs[1 : len(runs) // 2 * 2]
    if len(inner):
        start = int(runs[0])
        values = np.arange(len(inner)) % 2 == 0
        out[start : start + int(inner.sum())] = np.repeat(values, inner)
    return out


def _unpack(packed: str | bytes) -> npt.NDArray[np.int64]:
    """Run lengths from COCO's string: 5 bits a character, the sixth says that more follow.

    From the fourth on, a number is the difference from the one two before.
    """
    raw = packed.encode("ascii", "replace") if isinstance(packed, str) else packed
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 32) == 0
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise TkError("a COCO mask has a broken string of counts", found=f"{packed!r:.80}")
    starts = ends - lengths + 1
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
