"""Images in and out: finding the files, reading them the right way up, writing JPEG.

Pillow alone decodes: on 12-megapixel JPEG it gives the same pixels as OpenCV at the same speed, and
it refuses a truncated file instead of filling the rest with grey. Embedded colour profiles are not
applied.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tk.runtime.errors import TkError
from tk.runtime.files import write_bytes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Extensions of image files, in any case."""

MAX_PIXELS = 500_000_000
"""Images with more pixels are refused before they are decoded."""


class _TiffFile(TiffImageFile):
    """Without the check against Image.MAX_IMAGE_PIXELS that Pillow makes in this method."""

    def load_prepare(self) -> None:
        if getattr(self, "_im", self) is None:
            size = getattr(self, "_tile_size", self.size)  # before it is turned upright
            self.im = Image.new(self.mode, size).im
        ImageFile.ImageFile.load_prepare(self)


# The classes are called themselves, not through Image.open: that one tries forty formats, and warns
# or refuses by Image.MAX_IMAGE_PIXELS, a setting of the whole process that is not ours to change.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", _TiffFile),
    (b"MM\0*", _TiffFile),
    (b"II+\0", _TiffFile),  # BigTIFF
    (b"MM\0+", _TiffFile),
    (b"RIFF", WebPImageFile),
)
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FROM_16_BITS = np.round(np.arange(65536) / 257).astype(np.uint8)


class ImageError(TkError):
    """One image cannot be read; `what` is a single line without a folder, fit for a record."""


def find_images(folder: Path) -> list[Path]:
    """Image files under `folder`, in the order of their relative names.

    Hidden files and folders are skipped, links to folders are followed once. A path that is itself
    an image file gives that file.

    Raises:
        TkError: `folder` is missing, cannot be listed, or has no image in it.
    """
    wanted = "files named *" + ", *".join(EXTENSIONS)
    if folder.is_file():
        if folder.suffix.lower() in EXTENSIONS:
            return [folder]
        raise TkError(f"{folder} is not an image file", expected=wanted)
    if not folder.is_dir():
        raise TkError(f"{folder} does not exist", expected=f"a folder with {wanted}")
    found = _walk(folder)
    if not found:
        raise TkError(f"no images under {folder}", expected=wanted, found="none of these")
    return sorted(found, key=lambda path: (relative_name(path, folder), os.fsencode(path)))


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise TkError(f"cannot list {error.filename}: {error.strerror}")

    found, seen = [], {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        for name in folders[:]:
            real = os.path.realpath(os.path.join(root, name))
            if name.startswith(".") or real in seen:
                folders.remove(name)
            seen.add(real)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                found.append(Path(root, name))
    return found


def relative_name(path: Path, folder: Path) -> str:
    """Name of an image in records: `path` relative to `folder`, POSIX, NFC, always valid Unicode.

    Bytes of a file name that are not UTF-8 become backslash escapes. When `folder` is the image
    file itself, the name is the file name.
    """
    name = path.name if path == folder else path.relative_to(folder).as_posix()
    text = unicodedata.normalize("NFC", name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file, turned upright by its EXIF orientation.

    16-bit samples are divided by 257, never clipped (Pillow drops the low byte of colour samples,
    which differs by at most 1); float samples are taken as 0..1, or as 0..255 if one is above 1.
    Transparent pixels are composited on white. Of several pages or frames the first is read.

    Args:
        path: JPEG, PNG, BMP, TIFF or WebP; the contents decide, not the extension.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        ImageError: not an image, truncated, damaged, too large or without pixels.
    """
    return decode_image(_read(path), _label(path), max_pixels)


def image_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read width and height from the header of a file, without decoding it.

    Returns:
        width, height in pixels as stored: not turned by the EXIF orientation.

    Raises:
        ImageError: not an image, no whole header, too large or without pixels. Damage further on
            shows only when the image is read.
    """
    name = _label(path)
    with _reading(name), open(path, "rb") as file:
        reader = _reader(file.read(16), name)
        file.seek(0)
        with _explained(name), reader(file) as image:
            _check_size(image, name, max_pixels)
            width, height = image.size
            return width, height


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`read_image` of the bytes of a file; `name` is what errors call it."""
    image, alpha = _decode(data, name, max_pixels)
    if alpha is None or alpha.min() == 255:
        return image
    # Composited on white in integers: 255 - (255 - colour) * alpha, rounded.
    ink = (255 - image).astype(np.uint16) * alpha[..., None]
    return (255 - (ink + 127) // 255).astype(np.uint8)


def read_reference(
    path: Path, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Read a reference picture whose alpha channel, if there is one, cuts out the object.

    Returns:
        image: (H, W, 3) uint8 RGB, as stored under the mask, white outside it.
        mask: (H, W) bool, alpha above 127; None for a file without an alpha channel.

    Raises:
        ImageError: as `read_image`.
    """
    image, alpha = _decode(_read(path), _label(path), max_pixels)
    if alpha is None:
        return image, None
    mask = alpha > 127
    image[~mask] = 255
    return image, mask


def write_jpeg(path: Path, image: NDArray[np.uint8], quality: int = 90) -> None:
    """Write a JPEG file, whole or not at all.

    Args:
        path: the file, folders are made.
        image: (H, W, 3) uint8 RGB.
        quality: 1..100.

    Raises:
        TkError: a side is above 65500 pixels, the limit of the format.
    """
    if max(image.shape[:2]) > 65500:
        found = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise TkError(f"{path.name} is too large for JPEG", expected="sides to 65500", found=found)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    write_bytes(path, data.tobytes())


def _label(path: Path) -> str:
    """File name on one printable line."""
    name = relative_name(path, path.parent)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _read(path: Path) -> bytes:
    with _reading(_label(path)):
        return path.read_bytes()


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Say which file could not be read, and why."""
    try:
        yield
    except ImageError:
        raise
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say which file a decoder failed on; decoders raise a dozen types on broken bytes."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        what = f"{name} is truncated, damaged or of an unsupported kind"
        raise ImageError(what, found=f"{type(error).__name__}: {error}") from None


def _reader(start: bytes, name: str) -> type[ImageFile.ImageFile]:
    """The class that reads files with this beginning."""
    if not start:
        raise ImageError(f"{name} is empty", expected="an image", found="0 bytes")
    reader = next((kind for first, kind in _SIGNATURES if start.startswith(first)), None)
    if reader is None:
        kinds, found = "JPEG, PNG, BMP, TIFF or WebP", f"a file that starts with {start[:8]!r}"
        raise ImageError(f"{name} is not an image", expected=kinds, found=found)
    return reader


def _decode(
    data: bytes, name: str, max_pixels: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """RGB (H, W, 3) and alpha (H, W) or None, uint8, upright, as stored (not composited)."""
    reader = _reader(data, name)
    with _explained(name), reader(io.BytesIO(data)) as image:
        _check_size(image, name, max_pixels)
        image.load()
        return _samples(_upright(image), name)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width <= 0 or height <= 0:
        raise ImageError(f"{name} has no pixels", found=f"{width} x {height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is too large: {width} x {height} pixels",
            expected=f"at most {max_pixels} pixels",
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata must not cost the picture
        orientation = 1
    # Pillow has turned TIFF while loading and dropped the tag, so this cannot turn it twice.
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _samples(image: Image.Image, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    if image.mode.startswith(("I", "F")):
        return _grey_to_rgb(_to_8_bits(np.asarray(image), name)), None
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
    if image.mode in ("L", "1"):
        return _grey_to_rgb(np.asarray(image.convert("L"))), None
    return np.array(image.convert("RGB")), None


def _grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def _to_8_bits(grey: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Integers of 16 bits (in any type) or floats in 0..1 or 0..255, as uint8."""
    low, high = grey.min(), grey.max()
    is_float = grey.dtype.kind == "f"
    limit = 255 if is_float else 65535
    if not (low >= 0 and high <= limit):  # NaN is refused too
        raise ImageError(
            f"{name} has grey values out of range",
            expected="0..1 or 0..255" if is_float else "0..65535",
            found=f"{low}..{high}",
        )
    if is_float:
        return np.rint(grey * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
    return np.take(_FROM_16_BITS, grey)
