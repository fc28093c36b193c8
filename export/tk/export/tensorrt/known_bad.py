"""Pairs of TensorRT and model that others found to give wrong answers.

The parity gate decides; this table saves the build where the outcome is known, and tells where to
look when the gate says no. A row that only warns may be outdated: the gate then proves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tk.runtime.backends.tensorrt.library import parse_version
from tk.runtime.backends.tensorrt.log import warn
from tk.runtime.errors import TkError


@dataclass(frozen=True)
class KnownBad:
    """One row.

    Attributes:
        first, last: versions, both inside; numbers that are left out match everything.
        traits: all of these must hold for the model, see `traits.py`.
        refuse: build nothing; else warn.
        reason: what goes wrong.
        thread: where it is told.
    """

    first: str
    last: str
    traits: tuple[str, ...]
    refuse: bool
    reason: str
    thread: str

    def matches(self, version: str, traits: Iterable[str]) -> bool:
        """Whether the row is about this pair."""
        low, high = parse_version(self.first), parse_version(self.last)
        found = parse_version(version)
        inside = low <= found[: len(low)] and found[: len(high)] <= high
        return inside and set(self.traits) <= set(traits)

    def __str__(self) -> str:
        return f"{self.reason} ({self.thread})"


TABLE: tuple[KnownBad, ...] = (
    KnownBad(
        "10.2.0", "10.2.0", (), True,
        "this release gives wrong answers for common convolutional models",
        "ultralytics/ultralytics#24367",
    ),
    KnownBad(
        "10.3", "10.4", ("dinov3",), False,
        "DINOv3: cosine 0.02 to the original even in float32, NaN in float16, when its rotary "
        "position embedding is computed in the graph; a constant one is right",
        "NVIDIA/TensorRT#4742, #4723",
    ),
    KnownBad(
        "10.7", "10.7", ("attention",), False,
        "fused self-attention is wrong, in float32 too",
        "NVIDIA/TensorRT#4328, #4333",
    ),
    KnownBad(
        "10.13", "10.13", ("gridsample-20",), True,
        "GridSample of opset 20 is read wrongly; of opset 18 it is right",
        "NVIDIA/TensorRT#4646",
    ),
    KnownBad(
        "10.14", "11.99", ("gridsample", "mixed"), False,
        "GridSample is wrong in mixed precision",
        "pytorch/TensorRT#4074",
    ),
    KnownBad(
        "10.11", "11.1", ("segformer", "batch"), False,
        "batches above 1 are wrong, a batch of 1 is right",
        "NVIDIA/TensorRT#4853",
    ),
    KnownBad(
        "10.14", "11.1", ("deformable",), False,
        "boxes of DETR-like models are off, and equal rows of a batch give different answers",
        "NVIDIA/TensorRT#4813",
    ),
    KnownBad(
        "10.0", "11.1", ("attention", "mixed", "sm120"), False,
        "fused attention is wrong in float16 and bfloat16 on this GPU, exact in float32",
        "NVIDIA/TensorRT#4837",
    ),
    KnownBad(
        "8.6", "8.6", ("grounding-dino", "fp16"), False,
        "GroundingDINO in float16 is wrong unless its encoder and decoder stay in float32",
        "NVIDIA/TensorRT#3413",
    ),
)  # fmt: skip


def matching(version: str, traits: Iterable[str]) -> list[KnownBad]:
    """Rows about a pair of TensorRT and model."""
    have = set(traits)
    return [row for row in TABLE if row.matches(version, have)]


def check_known_bad(version: str, traits: Iterable[str], name: str) -> list[str]:
    """Warn of a pair that others found wrong, or refuse it.

    Args:
        version: of TensorRT.
        traits: of the model and of what is asked for.
        name: for messages.

    Returns:
        The warnings, for the parity report.

    Raises:
        TkError: the pair is hopeless.
    """
    rows = matching(version, traits)
    for row in rows:
        if row.refuse:
            raise TkError(
                f"TensorRT {version} is known to build {name} wrongly: {row.reason}",
                found=row.thread,
                fix="use another TensorRT" + ("" if not row.traits else ", or change the graph"),
            )
    texts = [f"TensorRT {version} and {name}: {row}" for row in rows]
    for text in texts:
        warn(text + "; the parity gate decides")
    return texts
