from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tk.train.embedder.data import CropFile
from tk.train.embedder.split import split_crops, write_splits


def scenes(count: int, classes: int, seed: int = 0) -> list[CropFile]:
    """Scenes of 3 to 7 objects of random classes."""
    rng = np.random.default_rng(seed)
    crops = []
    for scene in range(count):
        for number in range(rng.integers(3, 8)):
            path = Path(f"root/{scene:05d}_{number:02d}.jpg")
            crops.append(CropFile(path, int(rng.integers(classes)), f"scene_{scene:05d}"))
    return crops


def singles(count: int, classes: int) -> list[CropFile]:
    return [CropFile(Path(f"root/{i}.jpg"), i % classes, str(i)) for i in range(count)]


@pytest.mark.parametrize("crops", [scenes(120, 5), singles(600, 5)])
def test_split_crops__shares_of_the_whole_in_every_class(crops: list[CropFile]) -> None:
    splits = split_crops(crops, 0.2, 0.1, 3)
    assert sorted(c.path for part in splits.values() for c in part) == sorted(c.path for c in crops)
    total = Counter(c.label for c in crops)
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        found = Counter(c.label for c in splits[name])
        for label, count in total.items():
            assert found[label] / count == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("val", "test"), [(0.2, 0.1), (0.2, 0.0), (0.0, 0.1), (0.15, 0.15)])
def test_split_crops__crops_that_are_alone_within_rounding(
    val: float, test: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 120, rng.integers(2, 20))
    crops = [
        CropFile(Path(f"root/{label}/{i}.jpg"), label, f"{label} {i}")
        for label, size in enumerate(sizes)
        for i in range(size)
    ]
    splits = split_crops(crops, val, test, seed)
    assert sorted(c.path for part in splits.values() for c in part) == sorted(c.path for c in crops)
    for name, share in (("train", 1 - val - test), ("val", val), ("test", test)):
        found = np.bincount([c.label for c in splits[name]], minlength=len(sizes))
        assert (np.abs(found - share * sizes) < 1).all()
        assert abs(found.sum() - share * sizes.sum()) < 1


@pytest.mark.parametrize("seed", range(30))
def test_split_crops__random_photos_and_small_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, photos = int(rng.integers(1, 15)), int(rng.integers(1, 80))
    popularity = rng.dirichlet(np.full(classes, 0.3))  # some classes have one crop or none
    crops = [
        CropFile(Path(f"root/{photo}_{i}.jpg"), int(rng.choice(classes, p=popularity)), str(photo))
        for photo in range(photos)
        for i in range(int(rng.choice([1, 1, 2, 5, 9])))
    ]
    splits = split_crops(crops, 0.2, 0.1, seed)
    assert sorted(c.path for part in splits.values() for c in part) == sorted(c.path for c in crops)
    assert {c.label for c in splits["train"]} == {c.label for c in crops}
    names = {label: {c.group for c in crops if c.label == label} for label in range(classes)}
    if all(len(found) >= 3 or not found for found in names.values()):  # else a class is dealt apart
        kept = [{c.group for c in part} for part in splits.values()]
        assert not (kept[0] & kept[1] | kept[0] & kept[2] | kept[1] & kept[2])


def test_split_crops__every_class_has_a_photo_in_train() -> None:
    # One photo holds more than train's share, so that no other photo is missed there.
    sizes = {0: 800, **dict.fromkeys(range(1, 11), 20)}
    crops = [
        CropFile(Path(f"root/{photo}_{i}.jpg"), 0, f"photo {photo}")
        for photo, size in sizes.items()
        for i in range(size)
    ]
    crops += [CropFile(Path(f"root/rare {i}.jpg"), 1, f"photo {i}") for i in (1, 2, 3)]
    train = split_crops(crops, 0.2, 0.1, 0)["train"]
    assert {crop.label for crop in train} == {0, 1}


def test_split_crops__photos_stay_whole() -> None:
    splits = split_crops(scenes(120, 5), 0.2, 0.1, 3)
    photos = [{c.group for c in part} for part in splits.values()]
    assert not (photos[0] & photos[1] | photos[0] & photos[2] | photos[1] & photos[2])


def test_split_crops__seed_decides() -> None:
    crops = scenes(60, 4)
    assert split_crops(crops, 0.2, 0.1, 1) == split_crops(crops, 0.2, 0.1, 1)
    assert split_crops(crops, 0.2, 0.1, 1) != split_crops(crops, 0.2, 0.1, 2)


def test_split_crops__small_classes_reach_every_split() -> None:
    splits = split_crops(singles(33, 11), 0.2, 0.1, 0)
    assert all({c.label for c in part} == set(range(11)) for part in splits.values())


def test_split_crops__empty_shares() -> None:
    splits = split_crops(singles(20, 2), 0.0, 0.0, 0)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [20, 0, 0]


def test_split_crops__names_that_give_one_photo_per_class() -> None:
    crops = [CropFile(Path(f"root/{i}.jpg"), i % 2, f"tool{i % 2:03d}") for i in range(40)]
    splits = split_crops(crops, 0.2, 0.2, 0)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [24, 8, 8]


def test_write_splits__lists_files(tmp_path: Path) -> None:
    splits = split_crops(singles(10, 2), 0.2, 0.0, 0)
    write_splits(tmp_path / "splits.json", Path("root"), ("молоток", "b"), splits)
    table = json.loads((tmp_path / "splits.json").read_text(encoding="utf-8"))
    assert table["counts"]["train"] == {"молоток": 4, "b": 4}
    files = [name for part in table["files"].values() for names in part.values() for name in names]
    assert sorted(files) == sorted(f"{i}.jpg" for i in range(10))
