"""TensorRT's own messages: kept, so that an error can tell what the library said."""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from functools import cache
from typing import Any, ClassVar

KEPT = 200
"""Lines; a build says thousands, and those of a failure come last."""

SHOWN = 12
"""Lines that an error shows."""


MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "cudamalloc",
    # A builder or a runtime that finds no room for CUDA itself: 2 is cudaErrorMemoryAllocation.
    "initialization failure with error: 2.",
    "initialization failure with error 2.",
)
"""In log lines of work that lacked GPU memory."""


class Log:
    """Collects lines of warnings and errors of one build or one session.

    TensorRT keeps the first logger that it is given for the whole process (NVIDIA/TensorRT#1475),
    its plugins the last one. So all logs share one, and its lines go to the log whose owner works:
    the one that began last. Work of two owners at once would mix their lines.

    Attributes:
        logger: give this to TensorRT.
        lines: `ERROR: text`, oldest first; the last `KEPT`.
    """

    _working: ClassVar[weakref.ref[Log] | None] = None

    def __init__(self, trt: Any) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT)
        self.logger: Any = _logger(trt)
        self.begin()

    def begin(self) -> None:
        """Take what is said from now on, and forget what was said of earlier work."""
        self.lines.clear()
        Log._working = weakref.ref(self)

    @classmethod
    def hear(cls, line: str) -> None:
        """Give a line to the log whose owner works; nobody wants it when that one is gone."""
        working = cls._working() if cls._working else None
        if working is not None:
            working.lines.append(line)

    def errors(self) -> list[str]:
        """The lines that are errors, oldest first; all lines when none is."""
        found = [line for line in self.lines if not line.startswith("WARNING")]
        return found or list(self.lines)

    def lacks_memory(self) -> bool:
        """Whether it was GPU memory that lacked."""
        return any(word in self.text().lower() for word in MEMORY_WORDS)

    def text(self) -> str:
        """The last errors, one per line, for the `found` of an error."""
        shown = self.errors()[-SHOWN:]
        return "\n    ".join(shown) or "TensorRT gave no reason"


@cache
def _logger(trt: Any) -> Any:
    """The one logger of a TensorRT module; the cache keeps it, for TensorRT does not."""
    severity = trt.ILogger.Severity
    kept = {
        severity.INTERNAL_ERROR: "INTERNAL ERROR",
        severity.ERROR: "ERROR",
        severity.WARNING: "WARNING",
    }

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                Log.hear(f"{kept[severity]}: {msg}")

    return _Logger()


def warn(text: str) -> None:
    """Tell the user something that does not stop the work."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
