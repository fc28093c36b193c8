"""Generated tool scenes: the same bits for the same seed, and annotations that match the pixels."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO

from tk.runtime.errors import TkError
from tk.train.data.synth.dataset import SynthSummary, write_tools_dataset
from tk.train.data.synth.scene import CLASSES, VISIBLE, render_scene
from tk.train.data.synth.tools import TOOLS

IMAGES, SIZE, SEED = 6, 320, 5


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthSummary]:
    out = tmp_path_factory.mktemp("synth") / "one"
    return out, write_tools_dataset(out, images=IMAGES, size=SIZE, seed=SEED)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


def test_dataset__same_bits_from_two_workers(
    written: tuple[Path, SynthSummary], tmp_path: Path
) -> None:
    summary = write_tools_dataset(tmp_path / "two", images=IMAGES, size=SIZE, seed=SEED, workers=2)
    assert summary == written[1]
    assert hashes(tmp_path / "two") == hashes(written[0])


def test_scene__depends_on_seed_and_index() -> None:
    same = [render_scene(3, 1, 256).jpeg for _ in range(2)]
    assert same[0] == same[1]
    assert len({same[0], render_scene(3, 2, 256).jpeg, render_scene(4, 1, 256).jpeg}) == 3


def test_scenes__every_class_and_no_class_twice() -> None:
    seen: set[str] = set()
    for index in range(40):
        scene = render_scene(0, index, 256)
        assert 1 <= len(scene.classes) == len(set(scene.classes)) <= 8
        assert max(scene.labels.shape) == 256
        assert scene.image.shape == (*scene.labels.shape, 3)
        assert int(scene.labels.max()) == len(scene.classes) == len(scene.boxes)
        seen |= set(scene.classes)
    assert seen == set(CLASSES)
    assert len(CLASSES) == 11


def test_scene__largest_size() -> None:
    scene = render_scene(1, 0, 4000)
    assert max(scene.image.shape) == 4000
    assert scene.boxes.dtype == np.float32
    for number in range(len(scene.classes)):
        x0, y0, x1, y1 = scene.boxes[number]
        assert 0.12 * 4000 < max(x1 - x0, y1 - y0) < 0.5 * 4000
        assert 0 <= x0 < x1 <= scene.image.shape[1]
        assert 0 <= y0 < y1 <= scene.image.shape[0]


def test_annotations__match_the_rendered_masks(written: tuple[Path, SynthSummary]) -> None:
    folder, summary = written
    coco = COCO(str(folder / "annotations.json"))
    assert coco.dataset["info"]["seed"] == SEED
    assert coco.dataset["info"]["size"] == SIZE
    assert coco.dataset["info"]["kind"] == "tools"
    assert [c["name"] for c in coco.loadCats(range(1, 12))] == list(TOOLS)
    assert len(coco.getImgIds()) == IMAGES == summary.images
    assert len(coco.getAnnIds()) == summary.objects == sum(summary.per_class.values())
    for index, entry in enumerate(coco.loadImgs(sorted(coco.getImgIds()))):
        scene = render_scene(SEED, index, SIZE)
        stored = read(folder / "images" / entry["file_name"])
        np.testing.assert_array_equal(stored[:, :, ::-1], scene.image)
        assert (entry["height"], entry["width"]) == scene.labels.shape
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))
        assert [CLASSES[a["category_id"] - 1] for a in annotations] == list(scene.classes)
        for number, annotation in enumerate(annotations):
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, scene.mask(number))
            rows, columns = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert (x, y, x + w, y + h) == tight == tuple(scene.boxes[number])
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0


def test_crops__align_with_their_masks(written: tuple[Path, SynthSummary]) -> None:
    folder, summary = written
    coco = COCO(str(folder / "annotations.json"))
    crops = 0
    for entry in coco.loadImgs(coco.getImgIds()):
        photo = read(folder / "images" / entry["file_name"])
        for number, annotation in enumerate(coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))):
            place = folder / "crops" / CLASSES[annotation["category_id"] - 1]
            stem = f"{Path(entry['file_name']).stem}_{number:02d}"
            crop = read(place / "cropped" / f"{stem}.jpg")
            mask = read(place / "masks" / f"{stem}_mask.png")
            assert crop.shape == (*mask.shape, 3)
            assert set(np.unique(mask)) <= {0, 255}
            assert np.count_nonzero(mask) == annotation["area"]
            # The crop's own pixels, found again in the photo by the mask's place in it.
            rows, columns = np.nonzero(mask)
            x, y = (round(v) for v in annotation["bbox"][:2])
            top, left = y - int(rows.min()), x - int(columns.min())
            part = photo[top : top + mask.shape[0], left : left + mask.shape[1]]
            assert np.abs(part.astype(int) - crop).mean() < 4
            margin = math.ceil(0.1 * max(annotation["bbox"][2:]))
            assert x - left == min(margin, x)
            assert y - top == min(margin, y)
            crops += 1
    assert crops == summary.objects
    assert len(list((folder / "crops").glob("*/cropped/*.jpg"))) == crops


def test_tools__overlap_but_stay_seen() -> None:
    visible = np.concatenate([render_scene(2, index, 256).visible for index in range(25)])
    assert VISIBLE == 0.6
    assert visible.min() >= VISIBLE
    assert visible.max() == 1
    assert (visible < 0.97).sum() > 5  # else nothing overlaps and the bound above says nothing


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"images": 0}, "0"),
        ({"size": 255}, "255"),
        ({"size": 4001}, "4001"),
        ({"seed": -1}, "-1"),
        ({"workers": 0}, "0"),
    ],
)
def test_dataset__refuses_bad_arguments(
    tmp_path: Path, arguments: dict[str, int], found: str
) -> None:
    given = {"images": 1, "size": 256, "seed": 0, "workers": 1, **arguments}
    with pytest.raises(TkError) as caught:
        write_tools_dataset(
            tmp_path / "out",
            images=given["images"],
            size=given["size"],
            seed=given["seed"],
            workers=given["workers"],
        )
    assert caught.value.found == found
    assert caught.value.expected
    assert list(tmp_path.iterdir()) == []


def test_dataset__keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(TkError):
            write_tools_dataset(tmp_path / "out", images=1, size=256, seed=0, overwrite=overwrite)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_write__workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from tk.train.data.synth.dataset import write_tools_dataset\n"
        "if __name__ == '__main__':\n"
        "    out = pathlib.Path(sys.argv[1])\n"
        "    write_tools_dataset(out, images=5000, size=256, seed=0, workers=2)"
    )
    script = tmp_path / "draw.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "out")])
    children: set[str] = set()
    while len(children) < 2:
        assert process.poll() is None
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        names = {pid: Path(f"/proc/{pid}/cmdline") for pid in listed}
        children = {pid for pid, file in names.items() if "spawn_main" in file.read_text()}
        time.sleep(0.2)
    process.kill()
    process.wait()

    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "workers outlive their killed parent"
        time.sleep(0.2)
