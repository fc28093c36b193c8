"""Progress of a build, and a way to stop it: TensorRT 10 and newer report; 8.6 is silent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tk.runtime.progress import Progress

STEPS = 100
"""Of the bar; TensorRT's phases nest and their number is not known before."""


class Fraction:
    """How much of nested phases is done, 0 to 1."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str, int]] = {}
        self._done: dict[str, float] = {}

    def start(self, phase: str, parent: str, steps: int) -> None:
        """A phase begins inside another one ("" for the outermost)."""
        self._phases[phase] = (parent, max(1, steps))
        self._done[phase] = 0.0

    def step(self, phase: str, step: int) -> None:
        """A phase has done its step number `step`, counted from 0."""
        if phase in self._done:
            self._done[phase] = max(self._done[phase], step + 1.0)

    def finish(self, phase: str) -> None:
        """A phase ended."""
        self._phases.pop(phase, None)
        self._done.pop(phase, None)

    def value(self) -> float:
        """Of the outermost phase, with what is done inside of it."""
        roots = [name for name, (parent, _) in self._phases.items() if parent not in self._phases]
        return max((self._of(name) for name in roots), default=0.0)

    def _of(self, phase: str) -> float:
        steps = self._phases[phase][1]
        inner = [self._of(n) for n, (parent, _) in self._phases.items() if parent == phase]
        return min(1.0, (self._done[phase] + min(1.0, max(inner, default=0.0))) / steps)


def make_monitor(trt: Any, bar: Progress, stop: threading.Event) -> Any:
    """Make what TensorRT reports to, or None where it cannot (8.6).

    Args:
        stop: set it, and the build ends at the next step without a plan.
    """
    base: Any = getattr(trt, "IProgressMonitor", None)
    if base is None:
        return None
    fraction, shown, lock = Fraction(), [0], threading.Lock()

    class _Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                fraction.start(phase_name, parent_phase or "", num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                fraction.step(phase_name, step)
                done = int(STEPS * fraction.value())
                if done > shown[0]:
                    bar.advance(done - shown[0], phase_name[:40])
                    shown[0] = done
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                fraction.finish(phase_name)

    return _Monitor()


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Turn Ctrl-C into a request that TensorRT can obey, and raise it when the build has ended.

    An exception in the middle of TensorRT's calls would be lost or end the process.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        if stop.is_set():
            raise KeyboardInterrupt
