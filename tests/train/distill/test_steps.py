"""Steps: what makes one run again, and what a killed one leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tk.runtime.errors import TkError
from tk.runtime.files import read_json, write_bytes
from tk.train.distill.steps import Registry, Step


def step(folder: Path, run: Callable[[], None] | None = None, **options: Any) -> Step:
    """Copies `in` (a folder with a file) to `out`, and counts how often."""

    def work() -> None:
        times = folder / "times"
        times.write_text(times.read_text() + "x" if times.exists() else "x")
        write_bytes(folder / "out", (folder / "in" / "file").read_bytes())

    return Step(
        "copy",
        "copies",
        run or work,
        options,
        [folder / "in"],
        [folder / "out"],
        partial=[folder / "partial"],
        cache=[folder / "cache"],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("one")
    return tmp_path


def perform(folder: Path, made: Step | None = None, *, force: bool = False) -> bool:
    return Registry.open(folder).perform(made or step(folder), force=force)


def test_step__runs_once(folder: Path) -> None:
    assert perform(folder) and not perform(folder)
    entry = read_json(folder / "steps.json")["copy"]
    assert entry["state"] == "done" and list(entry["outputs"]) == ["out"]
    assert (folder / "times").read_text() == "x"


def test_step__runs_again_for_each_of_its_reasons(folder: Path) -> None:
    perform(folder)
    assert perform(folder, step(folder, alpha=1))  # another option
    assert not perform(folder, step(folder, alpha=1))
    (folder / "in" / "file").write_text("two")  # a changed input
    assert perform(folder, step(folder, alpha=1))
    (folder / "in" / "more").write_text("")  # one more input
    assert perform(folder, step(folder, alpha=1))
    os.rename(folder / "in" / "more", folder / "in" / "other")  # the same bytes, another name
    assert perform(folder, step(folder, alpha=1))
    (folder / "out").write_text("spoilt")  # a changed output
    assert perform(folder, step(folder, alpha=1))
    (folder / "out").unlink()  # a missing output
    assert perform(folder, step(folder, alpha=1))
    assert perform(folder, step(folder, alpha=1), force=True)
    assert (folder / "out").read_text() == "two"


def test_step__a_new_time_of_the_same_bytes_is_no_reason(folder: Path) -> None:
    perform(folder)
    os.utime(folder / "in" / "file", (1, 1))
    os.utime(folder / "out", (1, 1))
    assert not perform(folder)


def test_step__killed_goes_on_with_what_it_left(folder: Path) -> None:
    """A real SIGKILL in the middle of the step."""

    def dies() -> None:
        (folder / "partial").write_text("half")
        (folder / "out").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        perform(folder, step(folder, dies))
        os._exit(1)  # never reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert read_json(folder / "steps.json")["copy"]["state"] == "begun"
    assert perform(folder)
    assert (folder / "partial").exists() and (folder / "out").read_text() == "one"
    # With another option what is left belongs to another run.
    assert perform(folder, step(folder, alpha=2))
    assert not (folder / "partial").exists()


def test_step__cache_stays_unless_forced_or_damaged(folder: Path) -> None:
    perform(folder)
    (folder / "cache").write_text("rows")
    assert perform(folder, step(folder, alpha=1))
    assert (folder / "cache").exists()
    (folder / "out").write_text("spoilt")
    assert perform(folder, step(folder, alpha=1))
    assert not (folder / "cache").exists()
    (folder / "cache").write_text("rows")
    assert perform(folder, step(folder, alpha=1), force=True)
    assert not (folder / "cache").exists()


def test_step__missing_input_and_one_that_fails(folder: Path) -> None:
    def fails() -> None:
        raise TkError("cannot")

    with pytest.raises(TkError, match="cannot"):
        perform(folder, step(folder, fails))
    assert perform(folder)
    (folder / "in" / "file").unlink()
    (folder / "in").rmdir()
    with pytest.raises(TkError, match="step copy needs") as caught:
        perform(folder)
    assert "without --step" in caught.value.fix


def test_digest__of_folders_follows_links_and_skips_hidden_files(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "in")
    registry = Registry.open(folder)
    before = registry.digest(folder / "in")
    assert registry.digest(folder / "link") == before
    (folder / "in" / ".lock").write_text("")
    assert registry.digest(folder / "in") == before
    assert registry.digest(folder / "nothing") == ""
    (folder / "in" / "loop").symlink_to(folder / "in")
    assert registry.digest(folder / "in") == before
