"""From Severstal's layout: strips, a prepared folder, and tables that cannot be right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_runs import tiny_config

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.data.steel.dataset import write_steel_dataset
from tk.train.distill import strips
from tk.train.distill.pipeline import train_distill
from tk.train.distill.split import read_split


@pytest.fixture(scope="module")
def steel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strips") / "steel"
    write_steel_dataset(folder, images=50, seed=1, balanced=True)
    return folder


def run(data: Path, out: Path, **changes: Any) -> Path:
    values: dict[str, Any] = dict(model_id="test_vit", target=32, random_floor=False, seeds=1)
    return train_distill(tiny_config(data, out, **(values | changes)))


@pytest.fixture
def copy(steel: Path, tmp_path: Path) -> Path:
    shutil.copytree(steel, tmp_path / "steel")
    return tmp_path / "steel"


def table(data: Path) -> list[str]:
    return (data / "train.csv").read_text().splitlines()


def test_strips__to_the_table_and_classes_of_ones_choice(
    steel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(steel, tmp_path / "run", background=12)
    text = capsys.readouterr().err
    assert "without a defect" in text and "balanced weight" in text
    items = read_split(out / "class_info.json")
    assert items.classes == ("class_1", "class_2", "class_3", "class_4", "no_defect")
    # Source images, not patches, are divided.
    homes: dict[str, set[str]] = {}
    for group, split in zip(items.groups, items.split, strict=True):
        homes.setdefault(group, set()).add(str(split))
    assert max(map(len, homes.values())) == 1 and len(homes) < len(items.files)
    assert read_json(out / "results.json")["split"]["by"] == "source image"
    run(steel, out, background=12, class_ids=(1, 2, 4))
    text = capsys.readouterr().err
    assert "prepare: unchanged" in text and "patches: unchanged" in text
    assert read_split(out / "class_info.json").classes[1:] == ("class_2", "class_4", "no_defect")
    # A folder of tk data severstal is taken as it is.
    run(out / "prepared", tmp_path / "second", step="patches")
    patches = tmp_path / "second" / "patches"
    assert (patches / "patches.json").read_bytes()
    # So is one of tk data patches, and its classes can be chosen too.
    run(patches, tmp_path / "third", step="split", class_ids=(1, 2))
    assert read_split(tmp_path / "third" / "class_info.json").classes == ("class_1", "class_2")


def test_strips__missing_images(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = table(copy)[1].split(",")[0]
    (copy / "train_images" / name).unlink()
    with pytest.raises(TkError, match=r"1 images of train\.csv are not in") as caught:
        run(copy, tmp_path / "run", step="prepare")
    assert name in str(caught.value) and "--skip-missing" in str(caught.value)
    run(copy, tmp_path / "run", step="prepare", skip_missing=True)
    assert "1 images of the table missing, left out" in capsys.readouterr().err


def test_strips__empty_masks_are_counted(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(copy)
    parts = lines[1].split(",")
    (copy / "train.csv").write_text("\n".join([lines[0], f"{parts[0]},{parts[1]},", *lines[2:]]))
    run(copy, tmp_path / "run", step="prepare")
    assert "1 rows of the table with an empty mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("409600 2", r"a run outside the pixels 1\.\.409600"),
        ("5", "a start without a length"),
        ("1 x", "not a whole number"),
    ],
)
def test_strips__run_lengths_that_cannot_be(
    copy: Path, tmp_path: Path, runs: str, message: str
) -> None:
    lines = table(copy)
    name, kind, _ = lines[1].split(",")
    (copy / "train.csv").write_text("\n".join([lines[0], f"{name},{kind},{runs}", *lines[2:]]))
    with pytest.raises(TkError, match=message) as caught:
        run(copy, tmp_path / "run")
    assert name in str(caught.value)
    assert not (tmp_path / "run" / "prepared").exists()
    assert read_json(tmp_path / "run" / "steps.json")["prepare"]["state"] == "begun"
    # Mended, the same command goes through the step.
    (copy / "train.csv").write_text("\n".join(lines))
    run(copy, tmp_path / "run", step="prepare")


def test_strips__fetched_where_they_are_not(
    steel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(data: Path) -> None:
        shutil.copytree(steel, data)

    monkeypatch.setattr(strips, "download_severstal", fetch)
    run(tmp_path / "data", tmp_path / "run", step="prepare", download=True)
    monkeypatch.setattr(strips, "download_severstal", None)  # once is enough
    run(tmp_path / "data", tmp_path / "run", step="prepare", download=True)
    assert (tmp_path / "run" / "prepared" / "defects.json").is_file()


def test_strips__moved_away_from_the_run(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(copy, tmp_path / "run", step="prepare")
    run(copy, out, step="patches")
    before = (out / "prepared" / "defects.json").read_bytes()
    moved = tmp_path / "elsewhere" / "steel"
    moved.parent.mkdir()
    copy.rename(moved)
    with pytest.raises(TkError, match=r"step patches needs .*images") as caught:
        run(moved, out, step="patches")
    assert "a link to" in caught.value.found and "without --step" in caught.value.fix
    capsys.readouterr()
    run(moved, out, step="prepare")
    run(moved, out, step="patches")
    text = capsys.readouterr().err
    assert "prepare: boxes of the masks" in text and "patches: unchanged" in text
    assert (out / "prepared" / "defects.json").read_bytes() == before
    # Of a folder of tk data severstal the link is not ours to make anew.
    moved.rename(copy)
    with pytest.raises(TkError, match=r"step patches needs .*images") as caught:
        run(out / "prepared", tmp_path / "second", step="patches")
    assert caught.value.fix == "put it back, or give the path where it is"


def test_strips__too_few_of_the_classes_asked_for(steel: Path, tmp_path: Path) -> None:
    with pytest.raises(TkError, match="too few of the classes asked for") as caught:
        run(steel, tmp_path / "run", class_ids=(3,))
    assert "class_1" in caught.value.found


def test_strips__a_picture_that_is_none(copy: Path, tmp_path: Path) -> None:
    """A patch that broke after it was cut is left out and named."""
    out = run(copy, tmp_path / "run", step="prepare")
    run(copy, out, step="patches")
    patch = next((out / "patches" / "class_1" / "cropped").iterdir())
    patch.write_bytes(b"")
    with pytest.raises(TkError, match="step features needs"):
        run(copy, out, step="features")
    run(copy, out, step="split")
    items = read_split(out / "class_info.json")
    assert items.warnings[0] == "1 unreadable files were left out"
    assert not any(file.endswith(patch.name) for file in items.files)
