"""What a build is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tk.export.tensorrt.flags import NONE
from tk.runtime.errors import TkError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to make a plan.

    Attributes:
        precision: of the plan; a plan of another one is an error.
        opt_batch, max_batch: a plan takes 1 to `max_batch` rows; tactics are timed at `opt_batch`
            (0: the largest).
        keep: names of graph nodes that stay in float32. Where types are strong (10 and 11) the
            graph itself says so, and this must be empty.
        workspace: most GPU memory that one layer may work in, bytes; 0 leaves it to TensorRT.
        level: builder optimization level, 0 (quick) to 5 (all kernels are tried).
        hardware: `none` (this GPU), `same` (its compute capability), `ampere` (8.0 and newer).
        version_compatible: run by a `tensorrt_lean` of this version beside a newer TensorRT.
        tf32: let float32 layers multiply in TF32.
        own_tactics: do without cuDNN and cuBLAS (8.6).
        cache: folder of timing caches, None for none.
    """

    precision: str = "fp32"
    opt_batch: int = 0
    max_batch: int = 1
    keep: tuple[str, ...] = ()
    workspace: int = 0
    level: int = 3
    hardware: str = NONE
    version_compatible: bool = False
    tf32: bool = False
    own_tactics: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise TkError(f"unknown precision {self.precision!r}", expected=", ".join(PRECISIONS))
        if not 1 <= self.optimum <= self.max_batch:
            raise TkError(
                "tactics are timed at a batch that the plan never sees",
                expected=f"1 to {self.max_batch}",
                found=str(self.optimum),
            )
        if self.level not in LEVELS:
            raise TkError(f"optimization level {self.level} does not exist", expected="0 to 5")

    @property
    def optimum(self) -> int:
        """Batch that tactics are timed at."""
        return self.opt_batch or self.max_batch
