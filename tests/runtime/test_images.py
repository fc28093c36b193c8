from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tk.runtime.errors import TkError
from tk.runtime.images import (
    ImageError,
    decode_image,
    find_images,
    image_size,
    read_image,
    read_reference,
    relative_name,
    write_jpeg,
)

U8 = NDArray[np.uint8]


def ramp(height: int = 48, width: int = 64) -> U8:
    """Smooth, not symmetric under any of the eight orientations."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 200, height)[:, None]
    image[..., 2] = 90
    return image


def grey() -> U8:
    return np.ascontiguousarray(ramp()[..., 0])


def as_rgb(values: U8) -> U8:
    return np.repeat(values[..., None], 3, axis=2)


def by_pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_opencv(array: NDArray[Any], extension: str) -> bytes:
    return cv2.imencode(extension, array)[1].tobytes()


def deep(array: U8) -> NDArray[np.uint16]:
    return array.astype(np.uint16) * 257


def bgr(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array[..., ::-1])


RAMP, GREY = ramp(), grey()
PHOTO = Image.fromarray(RAMP)
BLACK_WHITE = (GREY > 127).astype(np.uint8) * 255
BITS = Image.fromarray(BLACK_WHITE)
FLOATS = (GREY / np.float32(255)).astype(np.float32)

# name, bytes, expected picture, allowed difference per sample
FORMATS: list[tuple[str, bytes, U8, int]] = [
    ("jpeg", by_pillow(PHOTO, "JPEG", quality=95), RAMP, 6),
    ("jpeg progressive", by_pillow(PHOTO, "JPEG", quality=95, progressive=True), RAMP, 6),
    ("jpeg grey", by_opencv(GREY, ".jpg"), as_rgb(GREY), 6),
    ("jpeg cmyk adobe", by_pillow(PHOTO.convert("CMYK"), "JPEG", quality=95), RAMP, 8),
    ("png", by_opencv(bgr(RAMP), ".png"), RAMP, 0),
    ("png 1 bit", by_pillow(BITS.convert("1"), "PNG"), as_rgb(BLACK_WHITE), 0),
    ("png grey", by_opencv(GREY, ".png"), as_rgb(GREY), 0),
    ("png grey 16", by_opencv(deep(GREY), ".png"), as_rgb(GREY), 0),
    ("png rgb 16", by_opencv(bgr(deep(RAMP)), ".png"), RAMP, 0),
    ("png grey alpha", by_pillow(PHOTO.convert("L").convert("LA"), "PNG"),
     as_rgb(np.asarray(PHOTO.convert("L"))), 0),
    ("png palette", by_pillow(Image.fromarray(GREY).convert("P"), "PNG"), as_rgb(GREY), 0),
    ("png rgba opaque", by_pillow(PHOTO.convert("RGBA"), "PNG"), RAMP, 0),
    ("bmp", by_opencv(bgr(RAMP), ".bmp"), RAMP, 0),
    ("bmp grey", by_pillow(Image.fromarray(GREY), "BMP"), as_rgb(GREY), 0),
    ("tiff", by_opencv(bgr(RAMP), ".tiff"), RAMP, 0),
    ("tiff deflate", by_pillow(PHOTO, "TIFF", compression="tiff_adobe_deflate"), RAMP, 0),
    ("tiff grey 16", by_opencv(deep(GREY), ".tiff"), as_rgb(GREY), 0),
    ("tiff rgb 16", by_opencv(bgr(deep(RAMP)), ".tiff"), RAMP, 0),
    ("tiff float", by_opencv(FLOATS, ".tiff"), as_rgb(GREY), 0),
    ("tiff float 255", by_opencv(GREY.astype(np.float32), ".tiff"), as_rgb(GREY), 0),
    ("tiff cmyk", by_pillow(PHOTO.convert("CMYK"), "TIFF"), RAMP, 2),
    ("webp", by_pillow(PHOTO, "WEBP", lossless=True), RAMP, 0),
    ("webp lossy", by_opencv(bgr(RAMP), ".webp"), RAMP, 12),
]  # fmt: skip


def write(folder: Path, data: bytes, name: str = "x.jpg") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def difference(one: U8, two: U8) -> int:
    return int(np.abs(one.astype(int) - two.astype(int)).max())


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"), [row[1:] for row in FORMATS], ids=[row[0] for row in FORMATS]
)
def test_read_image__format(tmp_path: Path, data: bytes, expected: U8, tolerance: int) -> None:
    image = read_image(write(tmp_path, data))
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    assert difference(image, expected) <= tolerance
    assert image_size(tmp_path / "x.jpg") == (image.shape[1], image.shape[0])


def test_read_image__same_pixels_as_opencv(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (65, 47, 3), dtype=np.uint8)
    path = write(tmp_path, by_opencv(noise, ".jpg"))
    np.testing.assert_array_equal(read_image(path), bgr(np.asarray(cv2.imread(str(path)))))


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_read_image__sixteen_bits_scaled(tmp_path: Path, extension: str) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    image = read_image(write(tmp_path, by_opencv(values, extension)))
    expected = np.round(values / 257).astype(int)
    np.testing.assert_array_equal(image[..., 1], expected)
    colour = read_image(write(tmp_path, by_opencv(np.dstack([values] * 3), extension)))
    assert np.abs(colour[..., 0] - expected).max() <= 1


ORIENTATIONS: dict[int, Callable[[U8], U8]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image__exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path, by_pillow(PHOTO, kind, exif=exif))
    image = read_image(path)
    expected = ORIENTATIONS[orientation](RAMP)
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    assert difference(image, expected) <= (20 if kind in ("JPEG", "WEBP") else 0)
    if kind == "JPEG":  # OpenCV turns it too, by its own reader of EXIF
        np.testing.assert_array_equal(image, bgr(np.asarray(cv2.imread(str(path)))))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says so too
def test_read_image__damaged_exif_is_ignored(tmp_path: Path) -> None:
    data = by_pillow(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffgarbage")
    assert read_image(write(tmp_path, data)).shape == RAMP.shape


def test_read_image__transparency_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 128]]
    image = read_image(write(tmp_path, by_pillow(Image.fromarray(pixels), "PNG")))
    assert image[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    over_white = [round(c * 128 / 255 + 127) for c in (0, 100, 200)]
    assert image[0, 2].tolist() == over_white


def test_read_image__palette_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    image = read_image(write(tmp_path, by_pillow(palette, "PNG", transparency=1)))
    assert image.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_read_reference__alpha_is_the_mask(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [[10, 20, 30, 128], [10, 20, 30, 127], [1, 2, 3, 255]]
    image, mask = read_reference(write(tmp_path, by_pillow(Image.fromarray(pixels), "PNG")))
    assert mask is not None
    assert mask.tolist() == [[True, False, True]]
    assert image.tolist() == [[[10, 20, 30], [255, 255, 255], [1, 2, 3]]]


def test_read_reference__no_alpha(tmp_path: Path) -> None:
    image, mask = read_reference(write(tmp_path, by_pillow(PHOTO, "PNG")))
    assert mask is None
    np.testing.assert_array_equal(image, RAMP)


def noisy() -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("BMP", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on the directory of a cut TIFF
def test_read_image__truncated(
    tmp_path: Path, kind: str, options: dict[str, Any], part: float
) -> None:
    data = by_pillow(noisy(), kind, **options)
    read_image(write(tmp_path, data))
    with pytest.raises(ImageError, match=r"x\.jpg is truncated"):
        read_image(write(tmp_path, data[: int(len(data) * part)]))


def png_of_size(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + chunk + end


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"just some text\n", "is not an image"),
        (b"\xff\xd8\xff garbage", "truncated, damaged"),
        (b"RIFF\0\0\0\0WAVEfmt ", "truncated, damaged"),
        (b"BM", "truncated, damaged"),
        (png_of_size(0, 7), "is truncated|has no pixels"),
        (png_of_size(50_000, 50_000), "is too large: 50000 x 50000"),
    ],
)
@pytest.mark.parametrize("read", [read_image, image_size])
def test_read_image__garbage(tmp_path: Path, data: bytes, message: str, read: Any) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read(write(tmp_path, data, "папка\n.jpg"))
    assert "\n" not in caught.value.what
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_read_image__folder_or_missing(tmp_path: Path, read: Any) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(ImageError, match=r"a\.jpg cannot be read: No such file") as caught:
        read(tmp_path / "a.jpg")
    assert str(tmp_path) not in str(caught.value)


def test_image_size__needs_the_header_alone(tmp_path: Path) -> None:
    path = write(tmp_path, by_pillow(noisy(), "PNG")[:100])
    assert image_size(path) == noisy().size
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


def test_read_image__float_out_of_range(tmp_path: Path) -> None:
    for values in (FLOATS - 1, FLOATS * 1000, FLOATS * np.nan):
        with pytest.raises(ImageError, match="out of range"):
            read_image(write(tmp_path, by_opencv(values, ".tiff")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_read_image__pillow_limit_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = write(tmp_path, by_pillow(PHOTO, kind))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 64 x 48 is a bomb to Pillow now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == RAMP.shape
    with pytest.raises(ImageError, match="too large: 64 x 48"):
        read_image(path, max_pixels=64 * 48 - 1)
    read_image(path, max_pixels=64 * 48)
    assert image_size(path, max_pixels=64 * 48) == (64, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_read_image__one_pixel(tmp_path: Path, kind: str) -> None:
    data = by_pillow(Image.new("RGB", (1, 1), (255, 255, 255)), kind)
    assert read_image(write(tmp_path, data)).tolist() == [[[255, 255, 255]]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "1"), ("JPEG", "L")])
def test_read_image__four_hundred_megapixels(tmp_path: Path, kind: str, mode: str) -> None:
    data = by_pillow(Image.new(mode, (20_000, 20_000)), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(data, "black")
    assert image.shape == (20_000, 20_000, 3)
    assert not image.any()


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_images__order_and_filter(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.JPG", "a/z.TiFF", "a/й.webp", "a.png", "c.txt", ".hidden.jpg", ".git/x.jpg",
        "deep/er/still/1.bmp", "jpg", "Я.jpeg",
    )  # fmt: skip
    names = [relative_name(path, tmp_path) for path in find_images(tmp_path)]
    expected = ["a.png", "a/z.TiFF", "a/й.webp", "b.JPG", "deep/er/still/1.bmp", "Я.jpeg"]
    assert names == expected == sorted(expected)


def test_find_images__nfc_names(tmp_path: Path) -> None:
    touch(tmp_path, "и\u0306.jpg")
    (path,) = find_images(tmp_path)
    assert relative_name(path, tmp_path) == "й.jpg"
    assert path.exists()


def test_find_images__one_file(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg", "notes.txt")
    path = tmp_path / "one.jpg"
    assert find_images(path) == [path]
    assert relative_name(path, path) == "one.jpg"
    with pytest.raises(TkError, match="not an image file"):
        find_images(tmp_path / "notes.txt")


def test_find_images__link_loop(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(find_images(tmp_path)) == 1


def test_find_images__nothing(tmp_path: Path) -> None:
    with pytest.raises(TkError, match=r"does not exist"):
        find_images(tmp_path / "missing")
    touch(tmp_path, "readme.txt")
    with pytest.raises(TkError, match=r"no images under .*\n.*\*\.jpg"):
        find_images(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names must be UTF-8 here")
def test_relative_name__not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg"))
    path.write_bytes(b"")
    (found,) = find_images(tmp_path)
    assert relative_name(found, tmp_path) == "bad\\udcff.jpg"
    with pytest.raises(ImageError, match=r"bad\\udcff\.jpg is empty"):
        read_image(found)


def test_write_jpeg__read_back(tmp_path: Path) -> None:
    path = tmp_path / "новая папка" / "фото №1.jpg"
    write_jpeg(path, RAMP, quality=95)
    assert difference(read_image(path), RAMP) <= 6
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_write_jpeg__too_large(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="too large for JPEG"):
        write_jpeg(tmp_path / "x.jpg", np.zeros((1, 65_501, 3), np.uint8))
    assert not list(tmp_path.iterdir())
