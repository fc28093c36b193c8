"""`tk verify`: every precision on every back end here, what is passed by and why, what it keeps."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray
from tests import tiny_bundles
from tests.export.tensorrt.world import GPU, World

from tk.cli import run as run_cli
from tk.runtime.bundle import PROBE, Bundle
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.files import read_json, write_json
from tk.runtime.manifest import Artifact
from tk.runtime.parity import limits as parity
from tk.runtime.verify import VerifyRow, record, verify

WRONG = tiny_bundles.EMBEDDER.replace("mean = ", "other = ").replace(
    "embedding = LpNorm",
    """ten = Constant<value_floats = [40.0, 0.0, 0.0]> ()
    mean = Add (other, ten)
    embedding = LpNorm""",
)


@pytest.fixture
def bundle(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny embedder, proved on ONNX Runtime only."""
    for precision in ("fp16", "int8"):
        monkeypatch.setitem(parity.THRESHOLDS, precision, parity.THRESHOLDS["fp32"])
    return Path(shutil.copytree(tiny_world / "bundles" / "embedder", tmp_path / "embedder"))


MIXING = tiny_bundles.EMBEDDER.replace("mean = ", "other = ").replace(
    "embedding = LpNorm",
    """rows = Shape<start = 0, end = 1> (image)
    two = Constant<value_ints = [2]> ()
    many = Greater (rows, two)
    flag = Cast<to = 1> (many)
    ten = Constant<value_floats = [40.0, 0.0, 0.0]> ()
    added = Mul (ten, flag)
    mean = Add (other, added)
    embedding = LpNorm""",
)
"""Right at batches of one and two, which the probe has, and wrong above."""


COARSE = tiny_bundles.EMBEDDER.replace("mean = ", "other = ").replace(
    "embedding = LpNorm",
    """step = Constant<value_floats = [8.0]> ()
    parts = Div (other, step)
    whole = Round (parts)
    mean = Mul (whole, step)
    embedding = LpNorm""",
)
"""Rounds colours to steps of eight: nearly the same vectors, other neighbours."""


def give_probe(folder: Path, images: NDArray[np.uint8]) -> None:
    """Put other pictures, and what the tiny embedder says of them, into the probe; then `add`."""
    mean = images.astype(np.float64).mean(axis=(1, 2))
    embedding = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)
    probe: dict[str, Any] = {"input/image": images, "output/model/embedding": embedding}
    np.savez_compressed(folder / PROBE, allow_pickle=False, **probe)


def add(folder: Path, text: str, precision: str, verdicts: dict[str, bool]) -> None:
    data = onnx.parser.parse_model(text).SerializeToString()
    artifact = Artifact(f"model.{precision}.onnx", "", 0, "model", "onnx", precision)
    tiny_bundles.add_artifact(folder, artifact, data, verdicts)


def table(rows: list[VerifyRow]) -> dict[str, VerifyRow]:
    return {f"{row.precision} on {row.backend}": row for row in rows}


@pytest.fixture
def tk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tk", *map(str, arguments)])
        code = 0
        try:
            run_cli()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def test_verify__every_precision_on_every_back_end(bundle: Path) -> None:
    add(bundle, tiny_bundles.EMBEDDER, "int8", {"onnxruntime-cpu": True, "openvino-cpu": False})
    rows = table(verify(bundle)[1])
    assert list(rows) == [
        f"{precision} on {backend}"
        for precision in ("fp32", "int8")
        for backend in ("onnxruntime-cuda", "openvino-cpu", "onnxruntime-cpu")
    ]
    for name in ("fp32 on onnxruntime-cpu", "int8 on onnxruntime-cpu"):
        assert rows[name].measures and rows[name].passed and rows[name].judged
    assert rows["fp32 on openvino-cpu"].measures and not rows["fp32 on openvino-cpu"].judged
    assert "failed the gate" in rows["int8 on openvino-cpu"].skipped
    assert "no NVIDIA GPU" in rows["int8 on onnxruntime-cuda"].skipped


def test_verify__only_what_was_asked_for(bundle: Path) -> None:
    add(bundle, tiny_bundles.EMBEDDER, "int8", {"onnxruntime-cpu": True})
    rows = verify(bundle, precision="int8", backend="onnxruntime", device="cpu")[1]
    assert list(table(rows)) == ["int8 on onnxruntime-cpu"]
    with pytest.raises(TkError, match="holds no files for device auto, precision fp16"):
        verify(bundle, precision="fp16")
    with pytest.raises(EnvironmentLacks, match="nothing in bundle"):
        verify(bundle, device="cuda")


def test_verify__a_part_without_the_precision_runs_in_float32(
    tiny_world: Path, tmp_path: Path, bundle: Path
) -> None:
    folder = Path(shutil.copytree(tiny_world / "bundles" / "segmenter", tmp_path / "segmenter"))
    data = onnx.parser.parse_model(tiny_bundles.ENCODER).SerializeToString()
    artifact = Artifact("encoder.int8.onnx", "", 0, "encoder", "onnx", "int8")
    tiny_bundles.add_artifact(folder, artifact, data, {"onnxruntime-cpu": True})
    rows = table(verify(folder)[1])
    mixed = rows["int8 on onnxruntime-cpu"]
    assert mixed.files == {"encoder": "encoder.int8.onnx", "decoder": "decoder.fp32.onnx"}
    assert mixed.passed and mixed.judged and mixed.measures


def test_verify__record_makes_a_pair_usable(bundle: Path) -> None:
    with pytest.raises(TkError, match="nothing proved") as caught:
        Bundle.open(bundle).session(backend="openvino")
    assert "--record" in caught.value.fix
    before = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}

    assert record(*verify(bundle)) == ["model.fp32.onnx on openvino-cpu"]

    with Bundle.open(bundle).session(backend="openvino") as session:
        assert session.backend == "openvino-cpu"
    assert table(verify(bundle)[1])["fp32 on openvino-cpu"].judged
    assert record(*verify(bundle)) == []
    changed = {name for name, data in before.items() if (bundle / name).read_bytes() != data}
    assert changed == {"parity.json", "manifest.json"}
    assert read_json(bundle / "parity.json")["verdicts"][-1]["by"] == "tk verify"


def test_verify__record_keeps_no_failure_and_no_other_bundle(bundle: Path) -> None:
    add(bundle, WRONG, "int8", {})
    opened, rows = verify(bundle)
    assert not table(rows)["int8 on onnxruntime-cpu"].passed
    assert record(opened, rows) == ["model.fp32.onnx on openvino-cpu"]
    opened, rows = verify(bundle)
    unjudged = [replace(row, judged=False) for row in rows if row.precision == "fp32"]
    renamed = [replace(row, files={"model": "else.onnx"}) for row in unjudged]
    value = read_json(bundle / "parity.json")
    write_json(bundle / "parity.json", {**value, "images": 1})
    with pytest.raises(CheckFailed, match="changed"):
        record(opened, renamed)


def test_verify__a_pair_never_judged_is_run_at_the_largest_batch(bundle: Path) -> None:
    add(bundle, MIXING, "int8", {})
    row = table(verify(bundle)[1])["int8 on onnxruntime-cpu"]
    assert not row.passed and not row.judged
    add(bundle, MIXING.replace("[2]", "[3]"), "fp16", {})
    assert table(verify(bundle)[1])["fp16 on onnxruntime-cpu"].passed


def test_verify__neighbours_of_the_probe(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = {**parity.THRESHOLDS["fp32"], "cosine": 0.99, "neighbours_kept": 0.95}
    monkeypatch.setitem(parity.THRESHOLDS, "int8", loose)
    colours = np.asarray(
        [[100, 100, c] for c in (99, 101, 107, 109, 115)], np.uint8
    )  # more than the largest batch takes; 101 and 99 are near, and round to different steps
    give_probe(bundle, np.tile(colours[:, None, None], (1, 64, 64, 1)))
    add(bundle, tiny_bundles.EMBEDDER, "fp16", {"onnxruntime-cpu": True})
    add(bundle, COARSE, "int8", {"onnxruntime-cpu": True})
    rows = table(verify(bundle)[1])
    for name, passed in (("fp16 on onnxruntime-cpu", True), ("int8 on onnxruntime-cpu", False)):
        figures = {m.metric: m for m in rows[name].measures["model"]}
        assert set(figures) == {"cosine", "neighbours_kept", "same_neighbour"}
        assert figures["cosine"].passed and figures["neighbours_kept"].passed is passed, figures
        assert (figures["same_neighbour"].value == 1.0) is passed
        assert rows[name].passed is passed


def test_verify__a_plan_for_this_machine_among_others(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("10.13")
    world.spec = {"image": (True, "UINT8", (-1, 64, 64, 3)), "embedding": (False, "FLOAT", (-1, 3))}
    world.install(monkeypatch)
    for sm, version in (("sm87", world.trt.__version__), ("sm90", "10.3.0")):
        facts = {"tensorrt": version, "sm": sm, "gpu": GPU.name}
        artifact = Artifact(f"plans/{sm}.plan", "", 0, "model", "plan", "fp16", facts)
        tiny_bundles.add_artifact(bundle, artifact, sm.encode(), {"tensorrt": True})
    row = table(verify(bundle)[1])["fp16 on tensorrt"]
    assert "it was built for sm87" in row.skipped and "tk plan" in row.skipped
    assert world.fake.called("deserialize_cuda_engine") == []


def test_cli__says_what_was_passed_by_and_what_to_do(bundle: Path, tk: Callable[..., Any]) -> None:
    code, text = tk("verify", bundle)
    assert code == 0
    assert "ok   fp32 on onnxruntime-cpu: model/embedding cosine 1 (needs 0.9999)" in text
    assert "fp32 on onnxruntime-cuda: not here (no NVIDIA GPU" in text
    assert "fp32 on openvino-cpu was not judged" in text and "--record lets it be used" in text

    code, text = tk("verify", bundle, "--record")
    assert code == 0 and "recorded: model.fp32.onnx on openvino-cpu" in text
    assert "was not judged" not in tk("verify", bundle)[1]


def test_cli__wrong_answers_matter_where_they_are_used(
    bundle: Path, tk: Callable[..., Any]
) -> None:
    add(bundle, WRONG, "int8", {})
    code, text = tk("verify", bundle)  # nobody judged it, so nothing uses it
    assert code == 0 and "FAIL int8 on onnxruntime-cpu" in text and "it stays out of use" in text
    code, text = tk("verify", bundle, "--precision", "int8")  # asked for
    assert code == 1 and "does not give the answers" in text


def test_cli__wrong_answers_of_a_pair_in_use(bundle: Path, tk: Callable[..., Any]) -> None:
    add(bundle, WRONG, "int8", {"onnxruntime-cpu": True})
    code, text = tk("verify", bundle)
    assert code == 1 and "int8 on onnxruntime-cpu" in text


def test_cli__json(bundle: Path, tk: Callable[..., Any]) -> None:
    code, text = tk("verify", bundle, "--json")
    lines = json.loads(text)
    assert code == 0
    by_name = {line["backend"]: line for line in lines}
    assert by_name["onnxruntime-cpu"]["in_use"] and by_name["onnxruntime-cpu"]["passed"]
    assert by_name["onnxruntime-cuda"]["skipped"] and "value" not in by_name["onnxruntime-cuda"]
    assert by_name["openvino-cpu"]["in_use"] is False


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [("--device", "gpu", "cuda:N"), ("--precision", "fp8", "int8"), ("--backend", "x", "openvino")],
)
def test_cli__words_that_mean_nothing(
    bundle: Path, tk: Callable[..., Any], option: str, value: str, word: str
) -> None:
    code, text = tk("verify", bundle, option, value)
    assert code == 2 and word in text and "Traceback" not in text


def test_cli__annotate_says_which_and_why(
    tiny_world: Path, tmp_path: Path, tk: Callable[..., Any]
) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(tiny_bundles.blob((255, 9, 9))).save(photos / "a.png")
    options = ("--bundles", tiny_world / "bundles", "--gallery", tiny_world / "gallery")
    code, text = tk("annotate", photos, tmp_path / "out", *options)
    assert code == 0
    line = "embedder/model.fp32.onnx on onnxruntime-cpu: the only pair that passed the gate"
    assert line in text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert all(session["why"] for session in summary["sessions"])
    code, text = tk("annotate", photos, tmp_path / "b", *options, "--backend", "tensorrt")
    assert (
        code == 2
        and f"tk plan {tiny_world / 'bundles' / 'detector'}" in text
        and not (tmp_path / "b").exists()
    )


def test_wrong__is_wrong() -> None:
    """The graph of these tests that gives other answers does so."""
    found = []
    for text in (tiny_bundles.EMBEDDER, WRONG):
        from tk.runtime.backends.onnxrt.session import open_session

        data = onnx.parser.parse_model(text).SerializeToString()
        part = tiny_bundles.PARTS["embedder"]["model"][1]
        with open_session(data, "m", "fp32", part, 1) as session:
            image = tiny_bundles.blob((9, 9, 255))[None]
            found.append(session.run({"image": image})["embedding"][0])
    assert float(np.dot(found[0], found[1])) < 0.99
