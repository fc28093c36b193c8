"""Ctrl-C and SIGTERM as a wish to stop after the current step, where the state is whole."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from tk.train.run.distributed import is_main

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While active, the first signal sets `requested`; a second of its kind interrupts at once.

    Of its kind: torchrun answers the Ctrl-C that everybody has seen with a SIGTERM to everybody.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread set handlers; elsewhere the signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Say whether somebody wants the run to stop."""
        return bool(self.seen)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self.seen:
            raise KeyboardInterrupt
        if is_main() and not self.seen:
            text = "stopping after this step (again: at once, without a checkpoint)"
            print(text, file=sys.stderr)
        self.seen.add(number)


def ignore_in_worker() -> None:
    """Let the main process decide: terminals and batch systems signal the workers too.

    A worker that died of it would take the checkpoint with it; they end when the loader ends, or
    when they find that the main process is gone.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
