"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

LINE_EVERY = 10.0
"""Seconds between plain lines where there is no terminal (logs, CI)."""


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that `steps` more are done, with an optional short note (a loss, a file name)."""


class Silent:
    """Progress that nobody sees."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """See `Progress`."""


class _Lines:
    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.started = self.last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.last >= LINE_EVERY or self.done == self.total:
            self.last = now
            seconds = now - self.started
            left = seconds / max(self.done, 1) * (self.total - self.done)
            text = f"{self.label}: {self.done}/{self.total}, {seconds:.0f} s, {left:.0f} s left"
            print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)


_shown: list[Any] = []
"""The display on the terminal, while there is one: a terminal can hold no second."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """Show progress of `total` steps on standard error while the body runs.

    Work inside of work (a build inside a search) gets a bar below, which goes when it is done.

    Example:
        with progress("train", steps) as bar:
            for step in range(steps):
                bar.advance(note=f"loss {loss:.3f}")
    """
    if not sys.stderr.isatty():
        yield _Lines(label, total)
        return
    if _shown:
        task = _shown[0].add_task(label, total=total, note="")
        try:
            yield _Bar(_shown[0], task)
        finally:
            _shown[0].remove_task(task)
        return
    with _display() as display:
        _shown.append(display)
        try:
            yield _Bar(display, display.add_task(label, total=total, note=""))
        finally:
            _shown.clear()


class _Bar:
    def __init__(self, display: Any, task: Any) -> None:
        self.display, self.task = display, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.display.update(self.task, advance=steps, note=note)


def _display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return RichProgress(*columns, console=Console(stderr=True))
