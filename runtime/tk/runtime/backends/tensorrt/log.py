"""TensorRT's own messages: kept, so that an error can tell what the library said."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

KEPT = 200
"""Lines; a build says thousands, and those of a failure come last."""

SHOWN = 12
"""Lines that an error shows."""


MEMORY_WORDS = ("out of memory", "outofmemory", "insufficient memory", "cudamalloc")
"""In log lines of work that lacked GPU memory."""


class Log:
    """Collects lines of warnings and errors.

    Attributes:
        logger: give this to TensorRT.
        lines: `ERROR: text`, oldest first; the last `KEPT`.
    """

    def __init__(self, trt: Any) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT)
        severity = trt.ILogger.Severity
        kept = {
            severity.INTERNAL_ERROR: "INTERNAL ERROR",
            severity.ERROR: "ERROR",
            severity.WARNING: "WARNING",
        }
        lines = self.lines

        class _Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in kept:
                    lines.append(f"{kept[severity]}: {msg}")

        self.logger: Any = _Logger()

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


def warn(text: str) -> None:
    """Tell the user something that does not stop the work."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
