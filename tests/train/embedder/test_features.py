from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.preprocess import CropSpec, Image, ImageSpec
from tk.train.embedder.augment import Augment
from tk.train.embedder.data import Picture
from tk.train.embedder.features import (
    bytes_needed,
    cache_features,
    most_views,
    weights_digest,
)

ROWS, SIZE, SIDE, BATCH = 50, 24, 8, 4
"""Thirteen blocks, the last of two rows."""

WORK = f"""
import os, resource, sys, time
from pathlib import Path
import numpy as np
import tk.train.embedder.feature_file as feature_file
from tk.train.embedder.features import cache_features

feature_file.SAVE_EVERY = 0.0
folder, rank, world, fail_at = Path(sys.argv[1]), *map(int, sys.argv[2:5])
weights = np.random.default_rng(7).normal(size=({SIDE * SIDE * 3}, {SIZE})).astype(np.float32)
calls = 0

def canvas(row):
    return np.random.default_rng((3, row)).integers(0, 256, ({SIDE}, {SIDE}, 3), np.uint8)

def embed(canvases):
    global calls
    calls += 1
    if calls == fail_at:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    time.sleep(0.05)
    return canvases.reshape(len(canvases), -1).astype(np.float32) @ weights

meetings = 0

def barrier():
    global meetings
    meetings += 1
    (folder / f"here-{{meetings}}-{{rank}}").touch()
    while not all((folder / f"here-{{meetings}}-{{other}}").exists() for other in range(world)):
        time.sleep(0.01)

cache_features(
    folder, "train", rows={ROWS}, size={SIZE}, key={{"seed": 3}}, canvas=canvas, embed=embed,
    batch_size={BATCH}, part=(rank, world), barrier=barrier,
)
"""


def canvas(row: int) -> Image:
    return np.random.default_rng((3, row)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


class Projection:
    """A backbone that is one matrix; remembers the batches it saw."""

    def __init__(self) -> None:
        shape = (SIDE * SIDE * 3, SIZE)
        self.weights = np.random.default_rng(7).normal(size=shape).astype(np.float32)
        self.batches: list[int] = []

    def __call__(self, canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(canvases))
        return canvases.reshape(len(canvases), -1).astype(np.float32) @ self.weights


def build(folder: Path, embed: Any, **changes: Any) -> NDArray[np.float32]:
    options: dict[str, Any] = {"rows": ROWS, "size": SIZE, "key": {"seed": 3}, "canvas": canvas}
    options |= {"batch_size": BATCH}
    return cache_features(folder, "train", embed=embed, **(options | changes))


def start(folder: Path, rank: int = 0, world: int = 1, fail_at: int = -1) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder), str(rank), str(world), str(fail_at)],
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_done(folder: Path, name: str = "train.json") -> int:
    try:
        return int(json.loads((folder / name).read_bytes())["rows_done"])
    except FileNotFoundError:
        return 0


def kill_midway(folder: Path, rank: int = 0, world: int = 1, sidecar: str = "train.json") -> None:
    process = start(folder, rank, world)
    end = time.monotonic() + 60
    while rows_done(folder, sidecar) < 8 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file as made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    build(folder, Projection())
    return (folder / "train.npy").read_bytes()


def test_cache__is_what_the_backbone_gives(tmp_path: Path) -> None:
    embed = Projection()
    features = build(tmp_path, embed)

    assert isinstance(features, np.memmap) and not features.flags.writeable
    assert features.shape == (ROWS, SIZE) and features.dtype == np.float32
    for row in (0, 1, 3, 4, 48, 49):
        block = range(row // BATCH * BATCH, min(ROWS, row // BATCH * BATCH + BATCH))
        expected = embed(np.stack([canvas(i) for i in block]))
        np.testing.assert_array_equal(features[row], expected[row % BATCH])
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy"), features)
    assert (tmp_path / "train.npy").stat().st_size == bytes_needed(ROWS, SIZE)
    assert embed.batches[:13] == [4] * 12 + [2]
    record = json.loads((tmp_path / "train.json").read_bytes())
    assert record["key"] == {"seed": 3} and record["dtype"] == "float32"
    assert record["rows_done"] == ROWS and record["done"] == [[0, ROWS]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.json", "train.npy"]


def test_cache__of_a_timm_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()

    def embed(canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = model(torch.from_numpy(canvases).permute(0, 3, 1, 2).float() / 255)
        return np.asarray(found.numpy(), np.float32)

    pictures = [np.full((32, 32, 3), 20 * i, np.uint8) for i in range(5)]
    features = build(tmp_path, embed, rows=5, size=model.num_features, canvas=pictures.__getitem__)
    np.testing.assert_array_equal(features[:4], embed(np.stack(pictures[:4])))
    np.testing.assert_array_equal(features[4:], embed(np.stack(pictures[4:])))


def test_cache__same_key_is_reused(
    tmp_path: Path, whole: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    key = {"seed": 3, "path": Path("a"), "views": np.int64(2), "fill": (1, 2), 5: "five"}
    build(tmp_path, Projection(), key={str(k): v for k, v in key.items()})
    second = Projection()
    features = build(tmp_path, second, key={str(k): v for k, v in key.items()})
    assert second.batches == []
    assert "reused" in capfd.readouterr().err
    assert (tmp_path / "train.npy").read_bytes() == whole
    assert features.shape == (ROWS, SIZE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": {"seed": 4}}, "seed"),
        ({"key": {"seed": 3, "views": 2}}, "views"),
        ({"key": {}}, "seed"),
        ({"batch_size": 5}, "batch_size"),
        ({"rows": ROWS - 2}, "rows"),
        ({"key": {"seed": 3, "rows": 1}}, "rows"),
    ],
)
def test_cache__another_key_is_made_anew(
    tmp_path: Path, changes: dict[str, Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = build(tmp_path, Projection())
    capfd.readouterr()
    second = Projection()
    features = build(tmp_path, second, **changes)
    assert sum(second.batches) == len(features) == changes.get("rows", ROWS)
    text = capfd.readouterr().err
    assert "made anew" in text and f"options: {reason}" in text
    # A map of the old file is still whole: its file was replaced, not overwritten.
    assert np.isfinite(before).all() and before[0].any()


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("train.npy", lambda data: data[:-4]),
        ("train.npy", lambda data: data + b"1234"),
        ("train.npy", lambda data: b"x" + data[1:]),
        ("train.npy", lambda _: b""),
        ("train.json", lambda data: data[: len(data) // 2]),
        ("train.json", lambda _: b"[]"),
        ("train.json", lambda _: b'{"key": "seed"}'),
        ("train.json", lambda _: b""),
    ],
)
def test_cache__broken_files_are_made_anew(
    tmp_path: Path, whole: bytes, file: str, spoil: Any
) -> None:
    build(tmp_path, Projection())
    (tmp_path / file).write_bytes(spoil((tmp_path / file).read_bytes()))
    second = Projection()
    build(tmp_path, second)
    assert sum(second.batches) == ROWS
    assert (tmp_path / "train.npy").read_bytes() == whole


@pytest.mark.parametrize("file", ["train.npy", "train.json"])
def test_cache__missing_file_is_made_anew(tmp_path: Path, whole: bytes, file: str) -> None:
    build(tmp_path, Projection())
    (tmp_path / file).unlink()
    second = Projection()
    build(tmp_path, second)
    assert sum(second.batches) == ROWS
    assert (tmp_path / "train.npy").read_bytes() == whole


def test_cache__killed_midway_goes_on(tmp_path: Path, whole: bytes) -> None:
    kill_midway(tmp_path)
    done = rows_done(tmp_path)
    assert 8 <= done < ROWS
    rest = Projection()
    build(tmp_path, rest)
    assert sum(rest.batches) == ROWS - done
    assert (tmp_path / "train.npy").read_bytes() == whole


def test_cache__an_error_keeps_what_was_done(tmp_path: Path, whole: bytes) -> None:
    def broken(row: int) -> Image:
        if row == 21:
            raise TkError("a file changed")
        return canvas(row)

    with pytest.raises(TkError, match="a file changed"):
        build(tmp_path, Projection(), canvas=broken)
    assert rows_done(tmp_path) == 20  # less than two seconds after the start
    rest = Projection()
    build(tmp_path, rest)
    assert sum(rest.batches) == ROWS - 20
    assert (tmp_path / "train.npy").read_bytes() == whole


def test_cache__two_processes_make_the_same(tmp_path: Path, whole: bytes) -> None:
    both = [start(tmp_path, rank, 2) for rank in (0, 1)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert (tmp_path / "train.npy").read_bytes() == whole
    assert rows_done(tmp_path) == ROWS
    assert not list(tmp_path.glob("train.*.json"))


def test_cache__work_of_a_killed_second_process_is_kept(tmp_path: Path, whole: bytes) -> None:
    first = start(tmp_path, 0, 2)
    kill_midway(tmp_path, 1, 2, "train.1.json")
    first.kill()
    first.communicate()
    done = rows_done(tmp_path) + rows_done(tmp_path, "train.1.json")
    rest = Projection()
    build(tmp_path, rest)
    assert sum(rest.batches) == ROWS - done <= ROWS - 8
    assert (tmp_path / "train.npy").read_bytes() == whole
    assert not list(tmp_path.glob("train.*.json"))


def test_cache__progress_of_another_key_does_not_count(tmp_path: Path, whole: bytes) -> None:
    build(tmp_path, Projection(), key={"seed": 4})
    record = json.loads((tmp_path / "train.json").read_bytes())
    (tmp_path / "train.1.json").write_text(json.dumps(record | {"key": {"seed": 3}}))
    build(tmp_path, Projection())
    assert (tmp_path / "train.npy").read_bytes() == whole


def test_cache__no_room_is_said_beforehand(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks) as error:
        build(tmp_path, Projection(), rows=10**15, size=1000, views=10**13, batch_size=10**15)
    assert "4000000000.00 GB" in str(error.value)
    assert "--feature_views 0" in error.value.fix
    views = int(error.value.fix.split(",")[0].split()[-1])
    assert 0 < views < 10**13
    assert not list(tmp_path.iterdir())


def test_cache__a_write_that_fails_is_said_and_mended(tmp_path: Path, whole: bytes) -> None:
    process = start(tmp_path, fail_at=6)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "train.npy cannot be written: File too large" in text
    done = rows_done(tmp_path)
    assert 0 < done <= 20
    rest = Projection()
    build(tmp_path, rest)
    assert sum(rest.batches) == ROWS - done
    assert (tmp_path / "train.npy").read_bytes() == whole


def test_cache__of_an_empty_split(tmp_path: Path) -> None:
    features = build(tmp_path, Projection(), rows=0)
    assert features.shape == (0, SIZE) and features.dtype == np.float32
    assert not list(tmp_path.iterdir())


def test_cache__features_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(TkError, match=r"not finite \(rows 0 to 3"):
        build(tmp_path, lambda batch: np.full((len(batch), SIZE), np.nan, np.float32))
    with pytest.raises(ValueError, match="shape"):
        build(tmp_path, lambda batch: np.zeros((len(batch), SIZE + 1), np.float32))


def test_cache__several_processes_need_a_barrier_and_one_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="barrier"):
        build(tmp_path, Projection(), part=(0, 2))
    with pytest.raises(TkError, match="is missing"):
        build(tmp_path, Projection(), part=(1, 2), barrier=lambda: None)


def test_cache__threads_with_an_augment_each_give_the_same(tmp_path: Path) -> None:
    spec = ImageSpec(SIDE, SIDE, anchor="center")
    pictures = [
        Picture(np.random.default_rng(i).integers(0, 256, (12, 9, 3), np.uint8), None)
        for i in range(5)
    ]
    own = threading.local()

    def augmented(row: int) -> Image:
        if not hasattr(own, "augment"):
            own.augment = Augment("tools", spec, CropSpec(), 0.0)
        canvas: Image = own.augment(pictures[row % 5], np.random.default_rng((1, row)))
        return canvas

    one = build(tmp_path / "one", Projection(), canvas=augmented)
    four = build(tmp_path / "four", Projection(), canvas=augmented, threads=4)
    np.testing.assert_array_equal(one, four)


def test_most_views__fit_exactly() -> None:
    for samples, size, gigabytes in ((1000, 384, 0.01), (7, 5, 1e-6), (100_000, 1024, 8.0)):
        views = most_views(samples, size, gigabytes)
        assert bytes_needed(samples * views, size) <= gigabytes * 1e9
        assert bytes_needed(samples * (views + 1), size) > gigabytes * 1e9
    assert most_views(1000, 384, 0.001) == 0


def test_weights_digest__sees_every_bit() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = weights_digest(model)
    assert before == weights_digest(model) and len(before) == len(hashlib.sha256().hexdigest())
    twin = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    twin.load_state_dict(model.state_dict())
    assert weights_digest(twin) == before
    running = twin[1].running_mean
    assert isinstance(running, torch.Tensor)
    running[0] = -0.0  # equal to 0.0, another bit
    assert weights_digest(twin) != before
    assert weights_digest(model.to(torch.bfloat16)) != before
