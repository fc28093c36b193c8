"""The commands `tk gallery build|evaluate|search`, and `tk annotate --search sub`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from tests import tiny_bundles
from tests.runtime.gallery.pictures import rgba, write_references
from typer.testing import CliRunner, Result

from tk.cli import app
from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.images import write_jpeg


def tk(*arguments: object) -> Result:
    """Run a command that succeeds."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output or result.exception
    return result


def failure(*arguments: object) -> str:
    """Run a command that a user got wrong; the text of its error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, TkError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each of three colours."""
    return write_references(tmp_path_factory.mktemp("references") / "refs")


def test_build__says_what_was_measured(references: Path, tiny_world: Path, tmp_path: Path) -> None:
    embedder = tiny_world / "bundles" / "embedder"
    done = tk(
        *("gallery", "build", references, tmp_path / "g"),
        *("--embedder", embedder, "--sub-prototypes", 2, "--segmenter"),
        tiny_world / "bundles" / "segmenter",
    )
    assert "3 classes, 18 references" in done.stdout
    for mode in ("centroid", "stack", "sub"):
        assert f"  {mode}: unknown below" in done.stdout
    assert "6 held-out, false rejections" in done.stdout
    facts = read_json(tmp_path / "g" / "gallery.json")["facts"]
    assert facts["calibration"]["held_out_by_class"] == {"blue": 2, "green": 2, "красный": 2}
    assert facts["masks"] == "by the segmenter"
    with np.load(tmp_path / "g" / "prototypes.npz") as archive:
        assert archive["sub_centroids"].shape == (6, 3)


def test_evaluate__text_and_json(references: Path, tiny_world: Path, tmp_path: Path) -> None:
    embedder = ("--embedder", tiny_world / "bundles" / "embedder")
    tk("gallery", "build", references, tmp_path / "g", *embedder, "--sub_prototypes", 2)
    pictures = write_references(tmp_path / "p", 2, first=30, yellow=(240, 230, 10))
    command = ("gallery", "evaluate", tmp_path / "g", pictures, *embedder)

    text = tk(*command).stdout
    for words in ("6 pictures of 3 classes", "accuracy", "(0.6097 to 1.0000, 6 of 6)", "yellow"):
        assert words in text
    for search in ("centroid", "stack", "sub"):
        done = tk(*command, "--search", search, "--unknown-threshold", 0.9, "--json")
        figures = orjson.loads(done.stdout)
        assert figures["accuracy"]["share"] == figures["right_rejections"]["share"] == 1.0
        assert (figures["search"], figures["threshold"]) == (search, 0.9)
    again = tk(*command, "--segmenter", tiny_world / "bundles" / "segmenter").stdout
    assert "note: masks are by the segmenter, those of the gallery's references given" in again


def test_search__text_and_json(tiny_world: Path, tmp_path: Path) -> None:
    rgba((250, 10, 10), 3).save(tmp_path / "red.png")
    rgba((10, 10, 250), 3).save(tmp_path / "blue.png")
    pictures = (tmp_path / "red.png", tmp_path / "blue.png")
    embedder = tiny_world / "bundles" / "embedder"
    command = ("gallery", "search", tiny_world / "gallery", *pictures, "--embedder", embedder)
    first, second = tk(*command).stdout.splitlines()
    assert "red.png: Красный" in first and "blue.png: blue" in second
    answers = orjson.loads(tk(*command, "--top", 1, "--json").stdout)
    assert [[row["class"] for row in answer["ranked"]] for answer in answers] == [
        ["Красный"],
        ["blue"],
    ]


def test_annotate__by_sub_prototypes(references: Path, tiny_world: Path, tmp_path: Path) -> None:
    bundles = tiny_world / "bundles"
    tk(
        *("gallery", "build", references, tmp_path / "g"),
        *("--embedder", bundles / "embedder", "--sub-prototypes", 2),
    )
    for name, color in (("r", (255, 9, 9)), ("b", (9, 9, 255))):
        write_jpeg(tmp_path / "in" / f"{name}.jpg", tiny_bundles.blob(color), quality=98)
    options = ("--bundles", bundles, "--unknown-threshold", 0.9, "--search", "sub")
    command = ("annotate", tmp_path / "in", tmp_path / "out", *options)
    tk(*command, "--gallery", tmp_path / "g")
    records = read_json(tmp_path / "out" / "predictions.json")
    assert [record["detections"][0]["class"] for record in records] == ["blue", "красный"]
    text = failure(*command, "--overwrite", "--gallery", tiny_world / "gallery")
    assert "no sub-prototypes" in text and "--sub-prototypes" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "{gallery}", "nowhere"), "nowhere is not a folder"),
        (("evaluate", "nowhere", "nowhere"), "nowhere is not a gallery"),
        (("evaluate", "{gallery}", "nowhere", "--search", "sub"), "no sub-prototypes"),
        (("search", "{gallery}", "nowhere.png"), "does not exist"),
        (("search", "{other}", "nowhere.png"), "another embedder"),
    ],
)
def test_mistakes__name_what_is_wrong(
    arguments: tuple[str, ...], words: str, tiny_world: Path, tmp_path: Path
) -> None:
    tiny_bundles.tiny_gallery("f" * 64).save(tmp_path / "other")
    places = {"gallery": tiny_world / "gallery", "other": tmp_path / "other"}
    filled = [argument.format(**places) for argument in arguments]
    assert words in failure("gallery", *filled, "--embedder", tiny_world / "bundles" / "embedder")


def test_build__replaces_galleries_and_nothing_else(
    references: Path, tiny_world: Path, tmp_path: Path
) -> None:
    command = ("gallery", "build", references)
    options = ("--embedder", tiny_world / "bundles" / "embedder", "--overwrite")
    for _ in range(2):
        tk(*command, tmp_path / "g", *options)
    assert "holds the input REFERENCES" in failure(*command, references.parent, *options)
    (tmp_path / "g" / "checkpoint_best.pth").touch()  # trainings leave a gallery in their run
    assert "more than a gallery" in failure(*command, tmp_path / "g", *options)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "prototypes.npz").touch()
    assert "not replaced" in failure(*command, tmp_path / "photos", *options)
