"""The chain of the original annotator: GroundingDINO, SAM-2, an embedder; models to records.

All three are small and know nothing, but their layers, their files and the way between them are
the real ones: `tk export` of library folders and a checkpoint, then `tk annotate` where neither
PyTorch nor transformers can be imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from tests.benchmarks import trio
from tests.export.grounding.models import picture, small_config, write_model
from tests.export.sam2 import small
from tests.test_floors import BLOCK

from tk.cli import run
from tk.runtime import records
from tk.runtime.boxes import iou_matrix
from tk.runtime.bundle import Bundle

PROMPT, OTHER = "wrench . pliers .", "Red Hammer"
SIZES = ((300, 200), (224, 256), (97, 400), (256, 224), (200, 200))
CLASSES = ("Ключ", "hammer", "saw")
LIMITS = ("--box-threshold", "0.35", "--text-threshold", "0.3", "--max-boxes", "6")

Records = list[dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models`, `photos`, `gallery` (reference pictures) and `bundles` of one small trio."""
    root = tmp_path_factory.mktemp("chain")
    config = small_config("grounding-dino", encoder_layers=1)
    config.backbone_config.depths = [1, 1, 1, 1]
    write_model(root / "models" / "detector", "grounding-dino", config)
    small.small_model().save_pretrained(root / "models" / "segmenter")
    trio.write_runs(root / "runs")
    for index, size in enumerate(SIZES):
        _save(root / "photos" / f"{index}.png", *size, seed=index)
    for index, name in enumerate(CLASSES):
        for shot in range(2):
            file = root / "gallery" / name / f"{shot}.png"
            _save(file, 80, 80, seed=100 + 10 * index + shot, cutout=True)
    sources = {
        "detector": (root / "models" / "detector", "--size", "224x256"),
        "segmenter": (root / "models" / "segmenter",),
        "embedder": (root / "runs" / "embedder",),
    }
    for task, words in sources.items():
        out = root / "bundles" / task
        assert _tk("export", *words, out, "--images", root / "photos", "--max-batch", 2) == 0
    return root


def _save(file: Path, height: int, width: int, seed: int, *, cutout: bool = False) -> None:
    """A soft picture; as a cutout, its alpha is the mask of a reference."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(picture(height, width, seed))
    if cutout:
        alpha = np.zeros((height, width), np.uint8)
        alpha[height // 8 : -height // 8, width // 4 : -width // 4] = 255
        made.putalpha(Image.fromarray(alpha))
    made.save(file)


def _tk(*words: object) -> int:
    """Run a command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", ["tk", *map(str, words)])
        run()
    return int(stopped.value.code or 0)


def _words(world: Path, out: Path, *more: object) -> list[str]:
    places = ("--bundles", world / "bundles", "--gallery", world / "gallery", "--threads", 1)
    return [str(word) for word in ("annotate", world / "photos", out, *places, *LIMITS, *more)]


def _annotate(world: Path, out: Path, *more: object) -> tuple[Records, dict[str, Any]]:
    """Records and summary of `tk annotate` in a process without training packages."""
    code = BLOCK + f"sys.argv[1:] = {_words(world, out, *more)!r}\nfrom tk.cli import run\nrun()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Records = json.loads((out / "predictions.json").read_text("utf-8"))
    schema = Path(records.__file__).with_name("predictions.schema.json")
    jsonschema.validate(found, json.loads(schema.read_text("utf-8")))
    return found, json.loads((out / "summary.json").read_text("utf-8"))


@contextmanager
def _opened_parts() -> Iterator[list[str]]:
    """Names of the parts that are opened in the body."""
    names: list[str] = []
    original = Bundle.session

    def session(self: Bundle, part: str = "model", **options: Any) -> Any:
        names.append(part)
        return original(self, part, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "session", session)
        yield names


def test_chain__two_prompts_over_the_same_bundles_without_pytorch(
    world: Path, tmp_path: Path
) -> None:
    before = {file: file.read_bytes() for file in (world / "bundles").rglob("*.onnx")}
    assert len(before) == 5
    seen = []
    for name, prompt in (("a", PROMPT), ("b", OTHER)):
        found, summary = _annotate(world, tmp_path / name, "--prompt", prompt)
        assert [record["image"] for record in found] == [f"{i}.png" for i in range(len(SIZES))]
        assert [(r["height"], r["width"]) for r in found] == list(SIZES)
        detections = [own for record in found for own in record["detections"]]
        assert len(detections) == summary["detections"] > 3 and summary["errors"] == 0
        words = {own["vlm_class"] for own in detections}
        known = {*prompt.lower().replace(".", " ").split(), ".", "[SEP]"}
        assert all(word and set(word.replace(".", " . ").split()) <= known for word in words), words
        seen.append(words)
        for own in detections:
            assert own["class"] in (*CLASSES, "unknown")
            assert {ranked["name"] for ranked in own["ranked"]} == set(CLASSES)
            assert sum(own["mask_rle"]["counts"]) == np.prod(own["mask_rle"]["size"])
        for record in found:  # each class at most once per photo
            given = [own["class"] for own in record["detections"] if own["class"] != "unknown"]
            assert len(given) == len(set(given))
    assert seen[0] != seen[1]
    assert before == {file: file.read_bytes() for file in (world / "bundles").rglob("*.onnx")}
    assert len(list((world / "bundles" / "detector" / "prompts").glob("*.npz"))) >= 2


def test_chain__text_side_runs_once_per_prompt(world: Path, tmp_path: Path) -> None:
    with _opened_parts() as parts:
        assert _tk(*_words(world, tmp_path / "a", "--prompt", "hammer . x", "--batch-size", 1)) == 0
    assert sorted(parts) == ["decoder", "encoder", "model", "model", "text"]
    calls = {
        s["name"]: s["calls"]
        for s in json.loads((tmp_path / "a/summary.json").read_bytes())["sessions"]
    }
    assert calls["detector/model.fp32.onnx"] == len(SIZES)
    with _opened_parts() as parts:
        assert _tk(*_words(world, tmp_path / "b", "--prompt", "hammer . x", "--batch-size", 1)) == 0
    assert "text" not in parts
    first, second = (tmp_path / name / "predictions.json" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_chain__pictures_together_and_one_by_one(world: Path, tmp_path: Path) -> None:
    options = ("--prompt", PROMPT, "--no-pictures", "--batch-size")
    alone, _ = _annotate(world, tmp_path / "one", *options, 1)
    together, summary = _annotate(world, tmp_path / "all", *options, len(SIZES))
    assert summary["sessions"][0]["calls"] == 3  # the bundle takes two pictures at a time
    for a, b in zip(alone, together, strict=True):
        assert a["image"] == b["image"] and len(a["detections"]) == len(b["detections"])
        for one, other in zip(a["detections"], b["detections"], strict=True):
            assert (one["class"], one["vlm_class"]) == (other["class"], other["vlm_class"])
            boxes = (np.asarray([own["bbox_xyxy"]], np.float32) for own in (one, other))
            assert iou_matrix(*boxes)[0, 0] > 0.97
            assert abs(one["score_vlm"] - other["score_vlm"]) < 1e-3
            assert abs(one["score_metric"] - other["score_metric"]) < 1e-3


def test_chain__nothing_found_is_a_record_without_detections(world: Path, tmp_path: Path) -> None:
    found, summary = _annotate(world, tmp_path / "out", "--box-threshold", 1)
    assert [record["detections"] for record in found] == [[]] * len(SIZES)
    calls = {session["name"]: session["calls"] for session in summary["sessions"]}
    assert calls["detector/model.fp32.onnx"] == 3  # four photos and one, two at a time
    assert calls["segmenter/encoder.fp32.onnx"] == calls["segmenter/decoder.fp32.onnx"] == 0
    assert calls["embedder/model.fp32.onnx"] == 3  # for the six references only


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ("names nothing", "found:    ''", "fix:")),
        (" . . ", ("names nothing", "phrases divided by dots")),
        ("tool . " * 130, ("too long", "at most 256 tokens", "262 tokens", "name fewer things")),
        ("wrench . 扳手", ("does not know '扳', '手'", "in the phrase '扳手' of", "English")),
        ("🔧", ("does not know '🔧'", "UNK")),
    ],
)
def test_chain__a_prompt_that_cannot_be_read(
    prompt: str,
    words: tuple[str, ...],
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _tk(*_words(world, tmp_path / "out", "--prompt", prompt)) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


def test_chain__a_bundle_of_an_older_tk(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "detector"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"schema": 0, "task": "detector"}')
    assert _tk(*_words(world, tmp_path / "out", "--detector", folder)) == 2
    said = capsys.readouterr().err
    assert "older tk" in said and f"tk export SOURCE {folder} --images DIR --overwrite" in said


@pytest.mark.parametrize("batch", [1, 5])
def test_export__max_batch_is_honoured_and_said(
    batch: int, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "segmenter"
    source = world / "models" / "segmenter"
    assert _tk("export", source, out, "--images", world / "photos", "--max-batch", batch) == 0
    assert f"largest batch proved: encoder {batch}, decoder 16" in capsys.readouterr().out
    parts = Bundle.open(out).manifest.parts
    assert (parts["encoder"].max_batch, parts["decoder"].max_batch) == (batch, 16)
