"""Bundles: what is refused, what is chosen, and that every byte is covered by a hash."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests import tiny_bundles

from tk.runtime.bundle import MANIFEST, Bundle
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.files import read_json, sha256_file, write_json
from tk.runtime.verify import verify


@pytest.fixture
def bundle(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny segmenter that a test may damage."""
    return Path(shutil.copytree(tiny_world / "bundles" / "segmenter", tmp_path / "segmenter"))


def test_open__intact(bundle: Path) -> None:
    opened = Bundle.open(bundle, "segmenter")
    assert list(opened.manifest.parts) == ["encoder", "decoder"]


@pytest.mark.parametrize(
    "name", ["encoder.fp32.onnx", "decoder.fp32.onnx", "parity.json", "probe.npz", MANIFEST]
)
def test_open__any_changed_byte_is_refused(bundle: Path, name: str) -> None:
    file = bundle / name
    data = bytearray(file.read_bytes())
    # A byte in the middle; inside the manifest, a digit that keeps it valid JSON.
    place = data.index(b'"bytes": ') + 9 if name == MANIFEST else len(data) // 2
    data[place] = ord("9") if data[place] != ord("9") else ord("8")
    file.write_bytes(bytes(data))

    with pytest.raises(CheckFailed, match="changed"):
        Bundle.open(bundle)


def test_open__missing_file(bundle: Path) -> None:
    (bundle / "decoder.fp32.onnx").unlink()
    with pytest.raises(CheckFailed, match="missing"):
        Bundle.open(bundle)


def test_open__file_outside_the_folder_is_refused(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    write_json(bundle / MANIFEST, manifest.with_artifacts([], {"../x": "0"}).to_json())
    with pytest.raises(CheckFailed, match="outside"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("schema", "what", "fix"),
    [
        (0, "an older tk wrote it", "export the model again"),
        (99, "a newer tk wrote it", "update tk, or export the model again"),
        ("1", "another schema", "export the model again"),
        (None, "another schema", "export the model again"),
    ],
)
def test_open__other_schema(bundle: Path, schema: object, what: str, fix: str) -> None:
    value = read_json(bundle / MANIFEST)
    write_json(bundle / MANIFEST, {**value, "schema": schema})
    with pytest.raises(TkError, match=what) as caught:
        Bundle.open(bundle)
    assert (caught.value.expected, caught.value.found) == ("schema 1", repr(schema))
    assert caught.value.fix.startswith(fix)
    assert f"tk export SOURCE {bundle} --images DIR --overwrite" in caught.value.fix


def test_open__other_task_and_no_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TkError, match="another task"):
        Bundle.open(bundle, "detector")
    with pytest.raises(TkError, match="not a bundle"):
        Bundle.open(tmp_path / "nowhere")


def test_session__names_what_is_there(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with pytest.raises(TkError, match="nothing proved") as caught:
        opened.session("encoder", precision="int8")
    assert "fp32 on onnxruntime-cpu" in caught.value.found
    with pytest.raises(TkError, match="no part"):
        opened.session("text")


def test_session__a_failed_verdict_is_not_chosen(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    failed = Bundle(opened.path, opened.manifest, {key: False for key in opened.verdicts})
    with pytest.raises(TkError, match="nothing proved"):
        failed.session("encoder")


def test_session__changed_after_opening(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "encoder.fp32.onnx").write_bytes(b"other")
    with pytest.raises(CheckFailed, match="changed"):
        opened.session("encoder")


def test_session__checks_inputs(tiny_world: Path) -> None:
    session = Bundle.open(tiny_world / "bundles" / "embedder").session()
    good = tiny_bundles.blob((255, 0, 0))[None]
    with pytest.raises(TkError, match="wrong set of inputs"):
        session.run({"picture": good})
    with pytest.raises(TkError, match="does not fit") as caught:
        session.run({"image": good.astype(np.float32)})
    assert "uint8 (B, 64, 64, 3)" in caught.value.expected
    assert "float32 (1, 64, 64, 3)" in caught.value.found
    with pytest.raises(TkError, match="does not fit"):
        session.run({"image": good[:, :60]})

    assert session.run({"image": good})["embedding"].shape == (1, 3)
    assert session.calls == 1 and session.seconds > 0
    session.close()
    with pytest.raises(TkError, match="closed"):
        session.run({"image": good})


@pytest.mark.parametrize("task", ["detector", "segmenter", "embedder"])
def test_verify__passes_on_an_intact_bundle(tiny_world: Path, task: str) -> None:
    _, rows = verify(tiny_world / "bundles" / task)
    by_name = {row.backend: row for row in rows}
    assert list(by_name) == ["onnxruntime-cuda", "openvino-cpu", "onnxruntime-cpu"]
    assert by_name["onnxruntime-cpu"].measures and by_name["onnxruntime-cpu"].passed
    assert by_name["onnxruntime-cpu"].judged and not by_name["openvino-cpu"].judged
    assert "no NVIDIA GPU" in by_name["onnxruntime-cuda"].skipped


def test_verify__sees_a_model_that_answers_differently(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with np.load(bundle / "probe.npz") as archive:
        probe = dict(archive)
    probe["output/decoder/logits"] = -probe["output/decoder/logits"]
    np.savez_compressed(bundle / "probe.npz", **probe)
    files = {name: sha256_file(bundle / name) for name in opened.manifest.files}
    again = opened.manifest.with_artifacts(list(opened.manifest.artifacts), files)
    write_json(bundle / MANIFEST, again.to_json())

    _, rows = verify(bundle)

    assert not all(row.passed for row in rows)
