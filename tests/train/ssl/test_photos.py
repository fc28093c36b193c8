from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tk.runtime.errors import TkError
from tk.train.ssl.photos import Photos, find_photos


def picture(seed: int, height: int = 12, width: int = 16) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(root: Path, count: int = 4) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(root / f"{number}.png")
    return root


def truncate(path: Path, share: float = 0.6) -> None:
    """Cut a file off after its header."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def level(photos: Photos, index: int) -> bytes:
    return photos.read(index).tobytes()


def test_photos__of_all_kinds_and_depths_are_found(tmp_path: Path) -> None:
    names = ("a.png", "b.JPG", "sub/c.jpeg", "sub/deep/d.bmp", "e.tif", "f.TIFF")
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    (tmp_path / "notes.txt").write_text("no picture")
    photos = find_photos([tmp_path])
    assert sorted(file.name for file in photos.files) == sorted(f"0/{name}" for name in names)
    assert all(photos.read(i).shape == (12, 16, 3) for i in range(len(photos)))


def test_photos__of_several_folders_count_once(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 2)
    (two / "link.png").symlink_to(one / "0.png")
    photos = find_photos([one, two, tmp_path])
    assert [file.name for file in photos.files] == [
        *("0/0.png", "0/1.png", "0/2.png", "0/3.png", "1/0.png", "1/1.png")
    ]


def test_photos__are_upright_and_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(0, 10, 20).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.full((5, 7), 90, np.uint8)).save(tmp_path / "grey.png")
    photos = find_photos([tmp_path])
    assert photos.read(1).shape == (20, 10, 3)
    assert (photos.read(0) == 90).all()
    assert photos.read(0).shape == (5, 7, 3)


def test_photos__broken_headers_are_left_out_and_listed(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "1a.jpg").write_bytes(b"")
    (tmp_path / "2a.png").write_bytes(b"<html>not found</html>")
    truncate(tmp_path / "3.png", 0.02)
    photos = find_photos([tmp_path])
    assert [file.path.name for file in photos.files] == ["0.png", "1.png", "2.png"]
    assert len(photos.skipped) == 3
    assert any("1a.jpg is empty" in text for text in photos.skipped)
    assert any("2a.png is not an image" in text for text in photos.skipped)


@pytest.mark.parametrize("ram_gb", [0.0, 1.0])
def test_photos__damage_found_later_is_replaced_by_the_next_and_reported(
    tmp_path: Path, ram_gb: float
) -> None:
    folder(tmp_path)
    for name in ("1.png", "3.png"):
        truncate(tmp_path / name)
    photos = find_photos([tmp_path], ram_gb=ram_gb)
    assert len(photos) == 4
    assert level(photos, 1) == level(photos, 2)
    assert level(photos, 3) == level(photos, 0)
    assert level(photos, 0) != level(photos, 2)
    assert photos.broken() == ["0/1.png", "0/3.png"]


def test_photos__workers_report_what_they_found_broken(tmp_path: Path) -> None:
    folder(tmp_path)
    truncate(tmp_path / "2.png")
    photos = find_photos([tmp_path])

    class Samples(torch.utils.data.Dataset[bytes]):
        def __len__(self) -> int:
            return len(photos)

        def __getitem__(self, index: int) -> bytes:
            return level(photos, index)

    assert photos.broken() == []
    loader = DataLoader(Samples(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = list(loader)
    assert photos.broken() == ["0/2.png"]
    assert found == [level(photos, index) for index in (0, 1, 3, 3)]


def test_photos__all_broken_says_so(tmp_path: Path) -> None:
    folder(tmp_path)
    photos = find_photos([tmp_path])
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(TkError, match="none of the pictures can be decoded any more"):
        photos.read(0)


def test_photos__the_cache_takes_what_fits_and_changes_nothing(tmp_path: Path) -> None:
    folder(tmp_path)
    photos = find_photos([tmp_path])
    cached = find_photos([tmp_path], ram_gb=2.5 * 12 * 16 * 3 / 1e9)
    whole = [level(photos, index) for index in range(4)]
    for name in ("0.png", "1.png"):
        (tmp_path / name).unlink()
    assert [level(cached, index) for index in range(4)] == whole
    (tmp_path / "2.png").unlink()
    assert level(cached, 2) == whole[3]


@pytest.mark.parametrize("count", [0, 1])
def test_photos__too_few_are_refused(tmp_path: Path, count: int) -> None:
    folder(tmp_path, count)
    text = "no images under" if count == 0 else r"one has nothing to differ from(.|\n)*1 usable, 0"
    with pytest.raises(TkError, match=text):
        find_photos([tmp_path])


def test_photos__missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="does not exist"):
        find_photos([tmp_path / "nowhere"])
    with pytest.raises(TkError, match="--train-dir"):
        find_photos([])
    folder(tmp_path, 3)
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(TkError, match=r"1 usable, 2 broken \(0\.png is empty"):
        find_photos([tmp_path])


def test_photos__facts_follow_names_and_sizes_not_places(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    facts = find_photos([one]).facts()
    assert facts == find_photos([two]).facts()
    assert facts["photos"].startswith("4 files ")
    (two / "3.png").rename(two / "4.png")
    renamed = find_photos([two]).facts()
    (two / "4.png").rename(two / "3.png")
    picture(3, 13).save(two / "3.png")
    assert len({str(one) for one in (facts, renamed, find_photos([two]).facts())}) == 3


def test_photos__small_ones_are_counted(tmp_path: Path) -> None:
    picture(0, 100, 40).save(tmp_path / "a.png")
    picture(0, 64, 64).save(tmp_path / "b.png")
    photos = find_photos([tmp_path])
    assert [photos.smaller_than(size) for size in (40, 41, 64, 65)] == [0, 1, 1, 2]


def test_statistics__are_those_of_all_pixels(tmp_path: Path) -> None:
    folder(tmp_path, 5)
    photos = find_photos([tmp_path])
    pixels = np.concatenate([photos.read(i).reshape(-1, 3) for i in range(5)]) / 255
    mean, std = photos.statistics()
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)


def test_statistics__every_picture_weighs_the_same_and_none_divides_by_zero(tmp_path: Path) -> None:
    for name, side, grey in (("a", 4, 0), ("b", 40, 255)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((side, side, 3), grey, np.uint8))
    mean, std = find_photos([tmp_path]).statistics()
    assert mean == (0.5, 0.5, 0.5)
    assert std == (0.5, 0.5, 0.5)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4, 3), 255, np.uint8))
    assert find_photos([tmp_path]).statistics() == ((1.0,) * 3, (1 / 255,) * 3)


def test_statistics__a_sample_is_the_same_every_time(tmp_path: Path) -> None:
    folder(tmp_path, 8)
    photos = find_photos([tmp_path])
    assert photos.statistics(1, 3) == photos.statistics(1, 3)
    assert photos.statistics(1, 3) != photos.statistics(2, 3)
