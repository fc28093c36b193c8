"""What an experiment tracker is, and how its failures are kept from the training."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

Outcome = Literal["finished", "interrupted", "failed"]
FAILURES_IN_A_ROW = 3
"""After so many a tracker is left alone."""


class Tracker(ABC):
    """Gets what `metrics.jsonl` gets."""

    @abstractmethod
    def record(self, record: Mapping[str, Any]) -> None:
        """Take one line of metrics.jsonl: plain JSON values; NaN and None are left out."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Send what is left and say how the run ended."""


class NoTracker(Tracker):
    """Takes everything and keeps nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self, outcome: Outcome) -> None:
        """Do nothing."""


class GuardedTracker(Tracker):
    """Keeps the failures of a tracker from the training: one warning, and an end after a few.

    Args:
        tracker: may raise anything.
        label: its name in the warning.
        warn: takes the one warning; default: standard error.
        limit: after so many failures in a row records are no longer handed on.
    """

    def __init__(
        self,
        tracker: Tracker,
        label: str,
        warn: Callable[[str], None] | None = None,
        limit: int = FAILURES_IN_A_ROW,
    ) -> None:
        self.tracker, self.label, self.limit = tracker, label, limit
        self.warn = warn or to_stderr
        self.failures = 0
        self._warned = False

    def record(self, record: Mapping[str, Any]) -> None:
        """Hand a record on, unless the tracker was given up."""
        if self.failures < self.limit:
            self._attempt(lambda: self.tracker.record(record))

    def close(self, outcome: Outcome) -> None:
        """Close the tracker, also one that was given up: it may hold a process."""
        self._attempt(lambda: self.tracker.close(outcome))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker and its libraries may raise
            self.failures += 1
            if not self._warned:
                self._warned = True
                self.warn(failure_text(self.label, error))
        else:
            self.failures = 0


def failure_text(label: str, error: BaseException) -> str:
    """The warning about a tracker that failed."""
    return (
        f"warning: {label} failed ({type(error).__name__}: {error}); "
        "the training goes on, and metrics.jsonl has every figure"
    )


def to_stderr(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)
