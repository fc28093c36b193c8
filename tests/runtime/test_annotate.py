"""The annotator end to end on tiny real bundles, with good and bad input."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests import tiny_bundles

import tk.runtime.records
from tk.runtime.annotate.annotator import AnnotateOptions, Models, annotate, load_gallery
from tk.runtime.annotate.output import TIMING_COLUMNS, picture_names
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.detector import DetectorOptions
from tk.runtime.heads.embedder import Embedder
from tk.runtime.masks import decode_row_major

RED, BLUE = (255, 9, 9), (9, 9, 255)


def save(path: Path, picture: NDArray[np.uint8], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path


def run(world: Path, photos: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Annotate and return the records, checked against the schema."""
    bundles = world / "bundles"
    models = Models(bundles / "detector", bundles / "segmenter", bundles / "embedder")
    annotate(photos, out, models, world / "gallery", AnnotateOptions(**options))
    records = orjson.loads((out / "predictions.json").read_bytes())
    schema = Path(tk.runtime.records.__file__).with_name("predictions.schema.json")
    jsonschema.validate(records, orjson.loads(schema.read_bytes()))
    return list(records)


def test_annotate__box_mask_and_class_are_exact(tiny_world: Path, tmp_path: Path) -> None:
    picture = tiny_bundles.blob(RED, (16, 16, 48, 32))
    save(tmp_path / "in" / "a.png", picture)

    (record,) = run(tiny_world, tmp_path / "in", tmp_path / "out")

    assert (record["image"], record["width"], record["height"]) == ("a.png", 64, 64)
    (detection,) = record["detections"]
    assert detection["bbox_xyxy"] == [16, 16, 48, 32]
    assert detection["class"] == "Красный"
    assert detection["ranked"][0]["name"] == "Красный"
    mask = decode_row_major(detection["mask_rle"]["size"], detection["mask_rle"]["counts"])
    np.testing.assert_array_equal(mask, picture.max(axis=2) > 128)


def test_annotate__every_format_size_name_and_orientation(tiny_world: Path, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    wide = tiny_bundles.blob(BLUE, (100, 40, 300, 120), 400)[:200]
    for suffix in ("png", "bmp", "tiff", "webp", "JPG"):
        save(photos / f"фото {suffix}.{suffix}", wide)
    save(photos / "a" / "same.png", wide)
    save(photos / "b" / "same.png", wide)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored picture lies on its side
    save(photos / "turned.jpg", np.ascontiguousarray(np.rot90(wide)), quality=95, exif=exif)
    Image.fromarray(wide).convert("CMYK").save(photos / "cmyk.jpg", quality=95)
    grey16 = np.where(wide.max(axis=2) > 128, 60000, 500).astype(np.uint16)
    Image.fromarray(grey16).save(photos / "sixteen.png")

    records = {str(r["image"]): r for r in run(tiny_world, photos, tmp_path / "out")}

    assert len(records) == 10
    assert {"a/same.png", "b/same.png"} <= set(records)
    for name, record in records.items():
        (detection,) = record["detections"]
        assert (record["width"], record["height"]) == (400, 200), name
        assert np.abs(np.subtract(detection["bbox_xyxy"], [100, 40, 300, 120])).max() <= 4, name
        picture = tmp_path / "out" / picture_names([*records])[name]
        assert Image.open(picture).size == (400, 200)


def test_annotate__bad_files_become_records(tiny_world: Path, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    good = save(photos / "good.jpg", tiny_bundles.blob(RED))
    (photos / "text.jpg").write_text("not a picture")
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.jpg").write_bytes(good.read_bytes()[:-200])
    save(photos / "one.png", np.zeros((1, 1, 3), np.uint8))
    save(photos / "big.png", np.zeros((300, 300, 3), np.uint8))

    records = {
        str(r["image"]): r
        for r in run(tiny_world, photos, tmp_path / "out", max_pixels=80_000, batch_size=2)
    }

    broken = {"text.jpg", "empty.png", "cut.jpg", "big.png"}
    assert {name for name, record in records.items() if "error" in record} == broken
    for name in broken:
        assert str(tmp_path) not in str(records[name]["error"])
        assert records[name]["detections"] == []
    assert len(records["good.jpg"]["detections"]) == 1
    assert records["one.png"]["detections"] == []


def test_annotate__huge_picture(tiny_world: Path, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    photos.mkdir()
    picture = Image.new("L", (20000, 20000), 10)
    picture.paste(255, (5000, 5000, 15000, 10000))
    picture.save(photos / "huge.png", compress_level=1)

    (record,) = run(tiny_world, photos, tmp_path / "out", masks=False)

    assert (record["width"], record["height"]) == (20000, 20000)
    (detection,) = record["detections"]
    assert np.abs(np.subtract(detection["bbox_xyxy"], [5000, 5000, 15000, 10000])).max() < 320
    assert "mask_rle" not in detection


def test_annotate__no_detections_at_all(tiny_world: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "dark.png", np.zeros((50, 80, 3), np.uint8))
    (record,) = run(tiny_world, tmp_path / "in", tmp_path / "out")
    assert record["detections"] == [] and "error" not in record
    summary = orjson.loads((tmp_path / "out" / "summary.json").read_bytes())
    calls = {entry["name"]: entry["calls"] for entry in summary["sessions"]}
    assert calls["segmenter/encoder.fp32.onnx"] == 0, "no boxes: the segmenter is not called"


def test_annotate__batches_do_not_change_the_answers(tiny_world: Path, tmp_path: Path) -> None:
    for index in range(7):
        side = 50 + 37 * index
        save(tmp_path / "in" / f"{index}.png", tiny_bundles.blob(RED, (9, 9, 40, 30), side))
    one = run(tiny_world, tmp_path / "in", tmp_path / "one", batch_size=1)
    many = run(tiny_world, tmp_path / "in", tmp_path / "many", batch_size=5)
    assert one == many
    assert [r["image"] for r in one] == [f"{i}.png" for i in range(7)]


def test_annotate__timings_have_a_row_per_photo(tiny_world: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", tiny_bundles.blob(RED))
    (tmp_path / "in" / "b.png").write_text("no picture")
    run(tiny_world, tmp_path / "in", tmp_path / "out")
    with open(tmp_path / "out" / "timings.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == TIMING_COLUMNS
    assert [row[0] for row in rows[1:]] == ["a.png", "b.png"]
    good, bad = ([float(cell) for cell in row[2:]] for row in rows[1:])
    assert good[0] == pytest.approx(sum(good[1:]), abs=1e-3)
    assert bad[1:4] == [0, 0, 0], "an unreadable photo takes no part in the engines"


def test_annotate__unknown_below_the_threshold(tiny_world: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", tiny_bundles.blob(RED))
    (record,) = run(tiny_world, tmp_path / "in", tmp_path / "out", unknown_threshold=0.9999)
    assert record["detections"][0]["class"] == "unknown"


def test_annotate__box_threshold_and_limit(tiny_world: Path, tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", tiny_bundles.blob(RED))
    above = DetectorOptions(box_threshold=1.1)
    records = run(tiny_world, tmp_path / "in", tmp_path / "out", detector=above, limit=2)
    assert [record["detections"] for record in records] == [[], []]


def test_annotate__earlier_results_are_not_overwritten(tiny_world: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", tiny_bundles.blob(RED))
    run(tiny_world, tmp_path / "in", tmp_path / "out")
    with pytest.raises(TkError, match="already holds"):
        run(tiny_world, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("make", [False, True])
def test_annotate__missing_or_empty_folder(tiny_world: Path, tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "in").mkdir()
    with pytest.raises(TkError):
        run(tiny_world, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_annotate__names_equal_after_normalisation(tiny_world: Path, tmp_path: Path) -> None:
    for name in ("\u0439.png", "\u0438\u0306.png"):  # one letter, composed and decomposed
        save(tmp_path / "in" / name, tiny_bundles.blob(RED))
    with pytest.raises(TkError, match="same name"):
        run(tiny_world, tmp_path / "in", tmp_path / "out")


def test_gallery__of_another_embedder_or_size(tiny_world: Path, tmp_path: Path) -> None:
    embedder = Embedder(Bundle.open(tiny_world / "bundles" / "embedder"))
    tiny_bundles.tiny_gallery("f" * 64).save(tmp_path / "foreign")
    with pytest.raises(TkError, match="another embedder"):
        load_gallery(tmp_path / "foreign", embedder)
    gallery = tiny_bundles.tiny_gallery()
    vectors = np.eye(3, 5, dtype=np.float32)
    type(gallery)(gallery.classes, vectors, vectors, gallery.stack_labels).save(tmp_path / "five")
    with pytest.raises(TkError, match="different embedding sizes"):
        load_gallery(tmp_path / "five", embedder)


def test_interrupt__what_is_finished_is_kept(tiny_world: Path, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    big = np.zeros((3000, 3000, 3), np.uint8)
    big[500:900, 500:900] = RED
    first = save(photos / "000.png", big)
    for index in range(1, 300):
        os.link(first, photos / f"{index:03d}.png")
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "tk.cli", "annotate", photos, out, "--batch-size", "1"),
        *("--bundles", tiny_world / "bundles", "--gallery", tiny_world / "gallery"),
    ]
    process = subprocess.Popen(
        [str(c) for c in command],
        stderr=subprocess.PIPE,
        text=True,
        # in a background job of a shell SIGINT is ignored, which children inherit: `make test &`
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "journal.jsonl").is_file() or not (out / "journal.jsonl").stat().st_size:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    records = orjson.loads((out / "predictions.json").read_bytes())
    assert 0 < len(records) < 300
    assert f"{len(records)} of 300 images" in errors


def test_full_disk__says_where_and_keeps_what_was_finished(
    tiny_world: Path, tmp_path: Path
) -> None:
    for index in range(40):
        save(tmp_path / "in" / f"{index:02d}.png", tiny_bundles.blob(RED))
    out = tmp_path / "out"
    arguments = [
        *("annotate", tmp_path / "in", out, "--batch-size", "1", "--no-pictures"),
        *("--bundles", tiny_world / "bundles", "--gallery", tiny_world / "gallery"),
    ]
    # A limit on the size of files fails a write in the middle, as a full disk does.
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        f"sys.argv[1:] = {[str(a) for a in arguments]!r}\n"
        "from tk.cli import run\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 3, done.stderr
    assert str(out) in done.stderr and "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr
    lines = (out / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    names = [orjson.loads(line)["image"] for line in lines]
    assert names and names == [f"{index:02d}.png" for index in range(len(names))]
    assert not (out / "predictions.json").exists()


def test_picture_names__equal_stems_stay_apart() -> None:
    names = picture_names(["a/x.jpg", "a/x.png", "b/x.jpg"])
    assert len(set(names.values())) == 3
    assert names["b/x.jpg"] == "pictures/b/x_ann_with_masks.jpg"
