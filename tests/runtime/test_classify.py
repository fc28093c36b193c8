"""`tk classify` on pictures whose classes are known in closed form."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tests.tiny_bundles import COLOURS, blob
from typer.testing import CliRunner

from tk.runtime.bundle import MANIFEST, Bundle
from tk.runtime.classify.classify import ClassifyOptions, classify
from tk.runtime.classify.journal import JOURNAL
from tk.runtime.classify.scores import score, true_class
from tk.runtime.classify.sheets import sample, sheet_name
from tk.runtime.cli import COMMANDS
from tk.runtime.errors import Interrupted, TkError
from tk.runtime.files import locked, read_json, write_json
from tk.runtime.heads.classifier import Classifier
from tk.runtime.manifest import TensorSpec, manifest_from_json
from tk.runtime.preprocess import Image as Pixels

RED, GREEN, BLUE = (250, 30, 10), (20, 240, 60), (10, 60, 250)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two red ones, a green one among the red, a blue one, a broken one, one without a class."""
    folder = tmp_path / "pictures"
    for name, colour in {
        "красный/a.png": RED,
        "красный/cropped/b.png": RED,
        "красный/c.png": GREEN,
        "test/green/d.png": GREEN,
        "other/e.png": BLUE,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blob(colour)).save(folder / name)
    (folder / "green").mkdir()
    (folder / "green" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(pictures: Path, out: Path, world: Path, *options: str) -> str:
    arguments = [str(pictures), str(out), "--bundle", str(world / "bundles/classifier"), *options]
    answer = CliRunner().invoke(COMMANDS["classify"], arguments, catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.output


def test_classify__table_in_closed_form(pictures: Path, tmp_path: Path, tiny_world: Path) -> None:
    out = tmp_path / "out"
    said = run(pictures, out, tiny_world)
    rows = rows_of(out)
    names = [row["image"] for row in rows]
    assert names == sorted(names) and len(rows) == 6
    found = {row["image"]: row for row in rows}
    assert found["green/broken.jpg"]["class"] == "" and "broken.jpg" in str(
        found["green/broken.jpg"]["error"]
    )
    red = softmax(blob(RED).reshape(-1, 3).astype(np.float64).mean(axis=0) / 32)
    assert found["красный/a.png"]["class"] == "красный"
    assert float(found["красный/a.png"]["probability"]) == pytest.approx(red[0], abs=2e-6)
    assert found["красный/a.png"]["second_class"] == "green"
    assert float(found["красный/a.png"]["second_probability"]) == pytest.approx(red[1], abs=2e-6)
    # a, b, c and d lie in folders of classes; c is the one that is wrong.
    assert "4 of 5 pictures: accuracy 0.7500" in said and "1 unreadable" in said
    confusion = (out / "confusion.csv").read_text("utf-8").splitlines()
    assert confusion[1:] == ["красный,2,1,0", "green,0,1,0", "blue/teal,0,0,0"]
    records = json.loads((out / "predictions.json").read_text("utf-8"))
    assert [record["image"] for record in records] == names
    assert not (out / JOURNAL).exists()


def test_classify__sheets_by_class(pictures: Path, tmp_path: Path, tiny_world: Path) -> None:
    run(pictures, tmp_path / "out", tiny_world)
    sheets = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert sheets == ["000_красный.jpg", "001_green.jpg", "002_blue_teal.jpg"]
    green = np.asarray(Image.open(tmp_path / "out" / "pictures" / "001_green.jpg")).astype(int)
    # c.png is in the folder of the red ones: framed in red.
    framed = (green[..., 0] > 180) & (green[..., 1] < 80) & (green[..., 2] < 80)
    assert framed.sum() > 500
    run(pictures, tmp_path / "none", tiny_world, "--samples", "0")
    assert not (tmp_path / "none" / "pictures").exists()


def test_classify__one_picture_json_and_default_folder(
    pictures: Path, tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(pictures / "other/e.png"), "--bundle", str(tiny_world / "bundles/classifier")]
    answer = CliRunner().invoke(COMMANDS["classify"], [*arguments, "--json"])
    summary = json.loads(answer.stdout)
    assert summary["classes"] == {"красный": 0, "green": 0, "blue/teal": 1}
    assert summary["by_folder"] is None and summary["session"]["backend"] == "onnxruntime-cpu"
    assert rows_of(tmp_path / "e-classes")[0]["image"] == "e.png"


def test_classify__results_of_an_earlier_run_stay(
    pictures: Path, tmp_path: Path, tiny_world: Path
) -> None:
    run(pictures, tmp_path / "out", tiny_world)
    with pytest.raises(TkError, match="of an earlier run"):
        run(pictures, tmp_path / "out", tiny_world)
    (pictures / "other" / "e.png").unlink()
    run(pictures, tmp_path / "out", tiny_world, "--overwrite")
    assert len(rows_of(tmp_path / "out")) == 5
    assert not (tmp_path / "out" / "pictures" / "002_blue_teal.jpg").exists()
    # Somebody's own folder is not replaced.
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    (tmp_path / "mine" / "pictures" / "one.jpg").touch()
    with pytest.raises(TkError, match="already holds pictures"):
        run(pictures, tmp_path / "mine", tiny_world)
    with pytest.raises(TkError, match="holds pictures of something else"):
        run(pictures, tmp_path / "mine", tiny_world, "--overwrite")
    assert (tmp_path / "mine" / "pictures" / "one.jpg").exists()


def test_classify__overwrite_removes_nothing_before_it_can_replace_it(
    pictures: Path, tmp_path: Path, tiny_world: Path
) -> None:
    out = tmp_path / "out"
    run(pictures, out, tiny_world)
    before = (out / "predictions.csv").read_bytes()
    for images, bundle in ((pictures, "nothing"), (tmp_path / "nothing", "classifier")):
        with pytest.raises(TkError):
            bundles = tiny_world / "bundles"
            classify(images, out, bundles / bundle, ClassifyOptions(), overwrite=True)
    assert (out / "predictions.csv").read_bytes() == before and (out / "pictures").is_dir()


def test_classify__a_link_to_nothing_is_a_row_with_an_error(
    pictures: Path, tmp_path: Path, tiny_world: Path
) -> None:
    (pictures / "other" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    run(pictures, tmp_path / "out", tiny_world)
    rows = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert rows["other/gone.png"]["error"] and len(rows) == 7


def test_classify__two_at_once_into_one_folder(
    pictures: Path, tmp_path: Path, tiny_world: Path
) -> None:
    out = tmp_path / "out"
    with locked(out), pytest.raises(TkError, match="another tk classify is at work"):
        run(pictures, out, tiny_world)
    run(pictures, out, tiny_world)


class _Stop:
    """A model that is interrupted in its second batch."""

    def __init__(self) -> None:
        self.batches = 0

    def run(self, model: Classifier, canvases: Sequence[Pixels]) -> NDArray[np.float32]:
        self.batches += 1
        if self.batches == 2:
            raise KeyboardInterrupt
        return _RUN(model, canvases)


_RUN = Classifier.run


def test_classify__goes_on_after_an_interruption(
    pictures: Path, tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, bundle = tmp_path / "out", tiny_world / "bundles" / "classifier"
    stop = _Stop()
    monkeypatch.setattr(Classifier, "run", lambda self, given: stop.run(self, given))
    with pytest.raises(Interrupted, match="3 of 6 images"):
        classify(pictures, out, bundle, ClassifyOptions())
    assert not (out / "predictions.csv").exists()
    with open(out / JOURNAL, "ab") as file:  # as a kill in the middle of a line leaves it
        file.write(b'{"image": "ha')
    summary = classify(pictures, out, bundle, ClassifyOptions())
    assert (summary["resumed_after"], stop.batches) == (3, 3)
    run(pictures, tmp_path / "whole", tiny_world)
    assert (out / "predictions.csv").read_bytes() == (
        tmp_path / "whole" / "predictions.csv"
    ).read_bytes()


def test_classify__journal_of_other_pictures_is_refused(
    pictures: Path, tmp_path: Path, tiny_world: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(b'{"model": "another"}\n')
    with pytest.raises(TkError, match="other pictures or another model"):
        run(pictures, tmp_path / "out", tiny_world)
    run(pictures, tmp_path / "out", tiny_world, "--overwrite")


def test_classify__bad_input(pictures: Path, tmp_path: Path, tiny_world: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TkError, match="no images under"):
        run(tmp_path / "empty", tmp_path / "out", tiny_world)
    with pytest.raises(TkError, match="for another task"):
        classify(pictures, tmp_path / "out", tiny_world / "bundles/embedder", ClassifyOptions())
    (tmp_path / "file").write_text("")
    with pytest.raises(TkError, match="is a file"):
        run(pictures, tmp_path / "file", tiny_world)


def test_classifier__a_head_alone_cannot_see(tmp_path: Path, tiny_world: Path) -> None:
    bundle = shutil.copytree(tiny_world / "bundles" / "classifier", tmp_path / "head")
    manifest = manifest_from_json(read_json(bundle / MANIFEST), bundle)
    part = manifest.parts["model"]
    feature = replace(part, inputs=(TensorSpec("feature", "float32", ("B", 8)),))
    write_json(bundle / MANIFEST, replace(manifest, parts={"model": feature}).to_json())
    with pytest.raises(TkError, match="takes features, not pictures") as caught:
        Classifier(Bundle.open(bundle))
    assert "--backbone" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("green/a.png", 1),
        ("green/cropped/a.png", 1),
        ("blue/teal/a.png", -1),  # a name with a slash can be no folder
        ("test/green/x/a.png", 1),
        ("green/красный/a.png", 0),
        ("green.png", -1),
        ("a.png", -1),
    ],
)
def test_true_class__nearest_folder(name: str, place: int) -> None:
    assert true_class(name, COLOURS) == place


def test_score__equals_sklearn() -> None:
    random = np.random.default_rng(0)
    true, said = random.integers(-1, 4, 200), random.integers(0, 4, 200)
    found = score(true.tolist(), said.tolist(), list("abcd"))
    known = true >= 0
    assert found is not None and found["images"] == known.sum()
    assert found["accuracy"]["value"] == accuracy_score(true[known], said[known])
    assert found["macro_f1"] == pytest.approx(f1_score(true[known], said[known], average="macro"))
    assert found["confusion"] == confusion_matrix(true[known], said[known]).tolist()
    assert score([-1, -1], [0, 1], ["a", "b"]) is None


def test_sample__from_the_most_doubtful_to_the_surest() -> None:
    assert sample([0.9, 0.2, 0.5], 5) == [1, 2, 0]
    assert sample([i / 10 for i in range(10)], 3) == [0, 4, 9]
    assert sheet_name(3, "../../etc") == "003_etc.jpg" and sheet_name(0, "///") == "000_class.jpg"
