"""Files and folders that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, atomic_path, locked, refuse_existing, refuse_inputs


def test_atomic_folder__failure_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_folder(tmp_path / "b", overwrite=True, own="old") as new,
    ):
        (new / "half").write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_atomic_folder__success_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "b", overwrite=True, own="o*") as new:
            (new / text).write_text(text)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    for own, helps in (("two", True), ("one", False), ("", False)):
        with pytest.raises(TkError, match="exists already") as caught:
            refuse_existing(tmp_path / "b", overwrite=False, own=own)
        assert ("--overwrite" in caught.value.fix) is helps


@pytest.mark.parametrize("own", ["", "results.json", "*/results.json"])
def test_atomic_folder__replaces_only_what_it_knows(own: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("a photo")
    with (
        pytest.raises(TkError, match="not replaced") as caught,
        atomic_folder(tmp_path / "photos", overwrite=True, own=own),
    ):
        pass
    assert "one.jpg" in caught.value.found and own in caught.value.expected
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_atomic_folder__a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(TkError, match="is a file"):
            refuse_existing(tmp_path / "f", overwrite=overwrite, own="*")


@pytest.mark.parametrize("out", [".", "..", "../here", "here/..", "../.."])
def test_refuse_existing__the_folder_one_stands_in(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for overwrite in (False, True):
        with pytest.raises(TkError, match="works in"):
            refuse_existing(Path(out), overwrite=overwrite, own="*")
    with locked(Path(out)):  # its name is told all the same
        pass


def test_atomic_folder__a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name in ("v1", "v2"):
        (tmp_path / "links" / "current").unlink(missing_ok=True)
        (tmp_path / "links" / "current").symlink_to(tmp_path / "store" / name)
        for text in ("one", "two"):
            with atomic_folder(tmp_path / "links" / "current", overwrite=True, own="one") as new:
                (new / text).write_text(text)
        assert (tmp_path / "links" / "current").is_symlink()
        assert [path.name for path in (tmp_path / "store" / name).iterdir()] == ["two"]
    assert [path.name for path in (tmp_path / "links").iterdir()] == ["current"]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("data", "holds the input --images"),
        ("data/..", "holds the input --images"),
        ("link", "holds the input --images"),
        ("data/deep/out", ""),
        ("other", ""),
    ],
)
def test_refuse_inputs__what_would_be_replaced(out: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    inputs = {"--truth": None, "--images": tmp_path / "data"}
    if not words:
        return refuse_inputs(tmp_path / out, inputs)
    with pytest.raises(TkError, match=words) as caught:
        refuse_inputs(tmp_path / out, inputs)
    assert str(tmp_path / out) in caught.value.what and caught.value.fix


def test_atomic_path__failure_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "f") as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
