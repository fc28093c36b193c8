"""Read from a finished plan which precision its layers run at; the request is not trusted.

The engine inspector's JSON has three dialects: 8.6 and 10 say `Format/Datatype`, in long (`Row
major linear FP16 format`) or short (`Half`) words; 11 has `Datatype` apart from `Format`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tk.runtime.errors import CheckFailed, TkError

WORDS = {
    "fp16": re.compile(r"\b(fp16|half|float16)\b"),
    "bf16": re.compile(r"\b(bf16|bfloat16)\b"),
    "int8": re.compile(r"\bint8\b"),
    "fp8": re.compile(r"\bfp8\b"),
    "fp32": re.compile(r"\b(fp32|float|float32|tf32)\b"),
}
"""Words of a tensor's or weight's type."""

TACTICS = {
    "fp16": re.compile(r"f16f16|h16816|h884|hgemm|_half_|_fp16"),
    "bf16": re.compile(r"bf16bf16|bf16_|_bf16"),
    "int8": re.compile(r"i8i8|imma|int8"),
    "fp8": re.compile(r"e4m3|fp8"),
}
"""Marks in names of kernels: a fused block shows only its float32 ends, but names its kernel."""

NARROW = ("int8", "fp8", "bf16", "fp16")
NO_WORK = ("reformat", "shuffle", "constant", "nooplayer", "signal", "wait")
OPAQUE = ("myelin", "foreignnode")


@dataclass(frozen=True)
class Found:
    """What the layers of a plan run at.

    Attributes:
        layers: precision -> number of layers that compute; reformatting is left out.
        opaque: layers that fuse many nodes and show only their ends.
    """

    layers: dict[str, int]
    opaque: int

    def share(self, precision: str) -> float:
        """Part of the layers that run at a precision, 0 to 1."""
        return self.layers.get(precision, 0) / max(1, sum(self.layers.values()))

    def to_json(self) -> dict[str, float]:
        """Shares by precision, for the manifest."""
        return {name: round(self.share(name), 3) for name in sorted(self.layers)}


def inspect(trt: Any, engine: Any) -> Found:
    """Ask an engine that was built with detailed profiling.

    Raises:
        TkError: the inspector says nothing that can be read.
    """
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON) if inspector else ""
    return read_inspector(text or "")


def read_inspector(text: str) -> Found:
    """Count layers by precision in the inspector's JSON.

    Raises:
        TkError: no JSON, or no layers with types in it.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (json.JSONDecodeError, AttributeError):
        layers = []
    detailed = [entry for entry in layers if isinstance(entry, dict)]
    if not detailed:
        raise TkError(
            "the engine inspector tells nothing about the layers of this plan",
            expected="JSON of a plan built with detailed profiling",
            found=text[:80] or "nothing",
        )
    working = [entry for entry in detailed if not _idle(entry)]
    counts = Counter(filter(None, (_precision(entry) for entry in working)))
    return Found(dict(counts), sum(_is_opaque(entry) for entry in working))


def _idle(entry: dict[str, Any]) -> bool:
    kind = str(entry.get("LayerType", "")).lower()
    return kind.startswith(NO_WORK) or str(entry.get("Name", "")).startswith("Reformatting")


def _is_opaque(entry: dict[str, Any]) -> bool:
    text = f"{entry.get('LayerType', '')} {entry.get('Name', '')}".lower()
    return any(word in text for word in OPAQUE)


def _precision(entry: dict[str, Any]) -> str:
    """The narrowest type among inputs, weights and kernel; "" for layers of whole numbers only.

    Outputs do not count: a layer may compute in float32 and then give float16.
    """
    tactic = f"{entry.get('TacticName', '')}".lower()
    for name in NARROW:
        if TACTICS[name].search(tactic):
            return name
    texts = list(_types(entry))
    for name in (*NARROW, "fp32"):
        if any(WORDS[name].search(text) for text in texts):
            return name
    return ""


def _types(entry: dict[str, Any]) -> Iterator[str]:
    for item in entry.get("Inputs") or ():
        for key in ("Format/Datatype", "Datatype", "DataType"):
            if isinstance(item, dict) and key in item:
                yield str(item[key]).lower()
    for key in ("Weights", "Bias"):
        if isinstance(weights := entry.get(key), dict):
            yield str(weights.get("Type", "")).lower()


def check_found(found: Found, precision: str, plan_bytes: int, float_bytes: int, name: str) -> None:
    """Refuse a plan that does not run at the precision that was asked for.

    Args:
        found: of the inspector.
        precision: that was asked for.
        plan_bytes: size of the plan.
        float_bytes: size of the weights in float32.
        name: for messages.

    Raises:
        CheckFailed: no layer runs at it, or a plan of float32 has layers that do not.
    """
    if precision == "fp32":
        narrow = sum(found.layers.get(name, 0) for name in NARROW)
        met = narrow == 0
    else:
        # A plan that is one fused block names no kernel; its weights still take half the room.
        halved = found.opaque > 0 and plan_bytes < 0.75 * float_bytes
        met = found.layers.get(precision, 0) > 0 or halved
    if not met:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(found.layers.items()))
        raise CheckFailed(
            f"TensorRT did not build {name} in {precision}",
            expected=f"layers in {precision}",
            found=f"layers: {counts or 'none'}; {found.opaque} opaque; plan of "
            f"{plan_bytes / 1e6:.1f} MB for {float_bytes / 1e6:.1f} MB of float32 weights",
            fix="ask for the precision that it has, or for another TensorRT",
        )
