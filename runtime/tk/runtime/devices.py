"""Where a model runs: the words of `--device`, read once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tk.runtime.errors import TkError


@dataclass(frozen=True)
class Device:
    """A wish for a device.

    Attributes:
        kind: `auto`, `cpu` or `cuda`.
        index: which GPU, as CUDA counts them; 0 unless said.
    """

    kind: str = "auto"
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.index else self.kind

    def allows(self, kind: str) -> bool:
        """Whether something for `cpu` or `cuda` may be taken."""
        return self.kind in ("auto", kind)


def parse_device(text: str) -> Device:
    """Read `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        TkError: something else.
    """
    found = re.fullmatch(r"(auto|cpu|cuda)|cuda:(\d{1,3})", text)
    if found is None:
        raise TkError(f"{text!r} is not a device", expected="auto, cpu, cuda or cuda:N")
    return Device(found[1] or "cuda", int(found[2] or 0))
