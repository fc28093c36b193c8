"""Progress: bars on a terminal, one inside the other; lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from tk.runtime import progress as module
from tk.runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines__now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY", 3600)
    with progress("gate", 3) as bar:
        for step in range(3):
            assert not capsys.readouterr().err
            bar.advance(note=f"step {step}")
    assert capsys.readouterr().err == "gate: 3/3, 0 s, 0 s left  step 2\n"
    monkeypatch.setattr(module, "LINE_EVERY", 0)
    with progress("search", 24) as bar:
        bar.advance(note="failed")
    assert capsys.readouterr().err.startswith("search: 1/24, 0 s, ")


def test_bars__one_inside_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress("search", 2) as outer:
        for _ in range(2):
            with progress("build", 1) as inner:
                (display,) = module._shown
                assert [task.description for task in display.tasks] == ["search", "build"]
                inner.advance(note="layer")
            assert [task.description for task in display.tasks] == ["search"]
            outer.advance(note="passed")
        (task,) = display.tasks
        assert task.finished and task.fields["note"] == "passed"
    assert module._shown == []
    assert isinstance(sys.stderr, Terminal) and "search" in sys.stderr.getvalue()


def test_bars__an_error_leaves_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), progress("a", 1), progress("b", 1):
        raise KeyError
    assert module._shown == []
