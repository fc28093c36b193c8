"""`tk export` as a user types it, with an embedder of a few kB in the place of a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.export.small_models import Cancelling, Mlp, small_model, write_images

from tk.cli import run as run_cli
from tk.runtime.bundle import Bundle

Tk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tk:
    """Run a command where the sources `mlp` and `cancelling` exist; exit code, output, errors."""

    def open_source(source: str, max_batch: int, **_: Any) -> Any:
        kind = {"mlp": Mlp, "cancelling": Cancelling}[Path(source).name]
        return small_model(kind(), tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tk", *map(str, arguments)])
        monkeypatch.setattr("tk.export.sources.registry.open_source", open_source)
        code = 0
        try:
            run_cli()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("cli") / "in", 40, broken=1)


def precisions(bundle: Path) -> list[str]:
    return sorted(artifact.precision for artifact in Bundle.open(bundle).manifest.artifacts)


def test_export__precisions_made_and_added(tk: Tk, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    code, text, err = tk("export", "mlp", out, "--images", images, "--precision", "fp16")
    assert code == 0, err
    assert precisions(out) == ["fp16", "fp32"]
    assert "fp32: " in text and "fp16: " in text and "and rounded as an engine would" in text
    assert "neighbours_kept 1 (needs 0.99), images [16]" in text
    for label in ("answers of PyTorch, model", "gate model.fp32", "gate model.fp16"):
        assert f"{label}: " in err
    before = {file.name: file.read_bytes() for file in out.glob("*.onnx")}

    code, text, err = tk("export", "mlp", out, "--images", images, "--precision", "fp16,int8")
    assert code == 0, err
    assert precisions(out) == ["fp16", "fp32", "int8"]
    assert "1 images could not be read and were passed by: broken0.jpg" in text
    assert "int8: " in text and "fp16: " not in text and "fp32: " not in text
    assert "measure ranges: 40/40" in err and "gate model.fp32" not in err
    assert all((out / name).read_bytes() == data for name, data in before.items())

    code, text, err = tk("export", "mlp", out, "--images", images, "--precision", "int8")
    assert code == 2 and "exists already and holds fp16, fp32, int8" in err


def test_export__fallback_tells_and_no_fallback_refuses(
    tk: Tk, images: Path, tmp_path: Path
) -> None:
    wanted = ("cancelling", tmp_path / "b", "--images", images, "--precision", "fp16")
    code, text, err = tk("export", *wanted, "--no-fallback")
    assert code == 1 and not (tmp_path / "b").exists()
    assert "does not reach fp16, and --no-fallback forbids" in err
    assert "FAIL model.fp16.onnx: embedding on emulated" in err and "Traceback" not in err
    code, text, err = tk("export", *wanted)
    assert code == 0 and "failed at first" in text and "kept in float32" in text
    parity = json.loads((tmp_path / "b" / "parity.json").read_text())
    assert parity["precisions"]["fp16"]["model"]["search"]["kept"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--precision", "fp8"), 2, "unknown --precision 'fp8'"),
        (("--precision", "int8", "--calibration", "best"), 2, "unknown calibration method"),
        (("--to", "coreml"), 2, "unknown --to 'coreml'"),
        (("--to", "tensorrt"), 3, "--to tensorrt cannot build plans on this machine"),
    ],
)
def test_export__words_that_mean_nothing_or_cannot_be(
    tk: Tk, images: Path, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    found, _, err = tk("export", "mlp", tmp_path / "b", "--images", images, *options)
    assert found == code and words in err and "Traceback" not in err
    assert not (tmp_path / "b").exists()


def test_export__images_that_are_too_few_or_not_there(tk: Tk, tmp_path: Path) -> None:
    few = write_images(tmp_path / "few", 9, broken=3)
    wanted = ("mlp", tmp_path / "b", "--precision", "int8", "--images")
    code, _, err = tk("export", *wanted, few)
    assert code == 2 and "int8 needs at least 32 readable images" in err and "9 of 12" in err
    code, _, err = tk("export", *wanted, tmp_path / "nowhere")
    assert code == 2 and "nowhere" in err and not (tmp_path / "b").exists()


def test_export__plans_of_a_bundle_come_from_tk_plan(
    tk: Tk, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    assert tk("export", "mlp", out, "--images", images)[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    code, _, err = tk("export", "mlp", out, "--images", images, "--to", "tensorrt")
    assert code == 2 and f"tk plan {out} --precision fp32" in err
    code, _, err = tk(
        "export", "mlp", out, "--images", images, "--to", "onnx,tensorrt", "--precision", "fp16"
    )
    assert code == 2
    assert f"tk export SOURCE {out} --images DIR --precision fp16; then tk plan {out}" in err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_export__a_bundle_is_no_source(tmp_path: Path, images: Path) -> None:
    from tests.cli.test_cli import tk as real

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{}")
    done = real("export", tmp_path / "b", tmp_path / "new", "--images", images, "--to", "onnx")
    assert done.returncode == 2
    assert "is a bundle already" in done.stderr and f"tk plan {tmp_path / 'b'}" in done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("mlp", "holds the input SOURCE"),
        (".", "holds the input SOURCE"),
        ("photos", "holds the input --images"),
        ("backbone", "holds the input --backbone"),
        ("mine", "this command did not make it"),
    ],
)
@pytest.mark.parametrize("mark", [True, False])
def test_export__overwrite_removes_no_input(
    out: str, words: str, mark: bool, tk: Tk, tmp_path: Path
) -> None:
    for file in ("mlp/checkpoint_best.pth", "backbone/backbone.pth", "mine/notes.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    write_images(tmp_path / "photos", 3)
    if mark and out != "mine":  # whatever else is there
        (tmp_path / out).mkdir(exist_ok=True)
        (tmp_path / out / "manifest.json").write_text("{}")
    before = contents(tmp_path)
    code, _, err = tk(
        *("export", tmp_path / "mlp", tmp_path / out, "--images", tmp_path / "photos"),
        *("--backbone", tmp_path / "backbone" / "backbone.pth", "--overwrite"),
    )
    assert code == 2 and words in err and "Traceback" not in err
    assert contents(tmp_path) == before


def test_export__overwrite_replaces_bundles_and_empty_folders(
    tk: Tk, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    for _ in range(2):
        code, _, err = tk("export", "mlp", tmp_path / "b", "--images", images, "--overwrite")
        assert code == 0, err
        assert precisions(tmp_path / "b") == ["fp32"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"schema": 0}')
    assert tk("export", "mlp", tmp_path / "broken", "--images", images, "--overwrite")[0] == 0


@pytest.mark.parametrize("out", [".", "..", "../b"])
def test_export__into_the_folder_one_stands_in(
    out: str, tk: Tk, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "b"
    assert tk("export", "mlp", bundle, "--images", images)[0] == 0
    before = contents(bundle)
    monkeypatch.chdir(bundle)
    for option in ((), ("--overwrite",)):
        code, _, err = tk("export", "mlp", out, "--images", images, "--precision", "fp16", *option)
        assert code == 2 and "works in it" in err
        assert "answers of PyTorch" not in err and "Traceback" not in err
    assert contents(bundle) == before


def test_export__a_link_stays_a_link(tk: Tk, images: Path, tmp_path: Path) -> None:
    (tmp_path / "cur").symlink_to("v1")
    for precision in ("fp32", "fp16"):
        wanted = ("export", "mlp", tmp_path / "cur", "--images", images, "--precision", precision)
        code, _, err = tk(*wanted)
        assert code == 0, err
    assert (tmp_path / "cur").is_symlink() and precisions(tmp_path / "v1") == ["fp16", "fp32"]
    assert {path.name for path in tmp_path.iterdir()} == {"cur", "v1", "net.pth", ".v1.lock"}
