"""`tk export` of our own checkpoints, in both opsets, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from tests.benchmarks import trio

from tk.cli import run
from tk.runtime.verify import verify


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/TASK` of compact models with random weights, and `images`."""
    folder = tmp_path_factory.mktemp("compact")
    trio.write_images(folder / "images")
    trio.write_runs(folder / "runs")
    return folder


def tk(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["tk", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("task", "opset"), [("detector", 17), ("segmenter", 17), ("segmenter", 18)]
)
def test_export__opset_of_files_and_manifest(
    task: str, opset: int, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    options = ("--images", runs / "images", "--opset", opset, "--max-batch", 3)
    assert tk(monkeypatch, "export", runs / "runs" / task, out, *options) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        graph = onnx.load(out / artifact["file"])
        assert graph.opset_import[0].version == artifact["facts"]["opset"] == opset
    assert manifest["source"]["file"] == "checkpoint_best.pth"
    _, rows = verify(out)
    ran = {row.backend for row in rows if row.passed and row.judged and not row.skipped}
    assert ran == {"onnxruntime-cpu", "openvino-cpu"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "12by9"), "is not a size"),
        (("--size", "64x64"), "--size means nothing"),
        (("--bake", "tool."), "--bake means nothing"),
        (("--sam2-cfg", "sam2.1_hiera_t"), "--sam2-cfg means nothing"),
        (("--opset", "20"), "17<=x<=18"),
    ],
)
def test_export__options_that_do_not_apply(
    options: tuple[str, ...],
    words: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = runs / "runs" / "detector"
    arguments = ("export", source, tmp_path / "b", "--images", runs / "images", *options)
    assert tk(monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "b").exists()
