"""Files and folders that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, atomic_path


def test_atomic_folder__failure_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "b", overwrite=True) as new:
        (new / "half").write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_atomic_folder__success_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "b", overwrite=True) as new:
            (new / text).write_text(text)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    with pytest.raises(TkError, match="exists already"), atomic_folder(tmp_path / "b"):
        pass


def test_atomic_path__failure_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "f") as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
