"""Read from a finished plan which precision its layers run at; the request is not trusted.

The engine inspector's JSON has three dialects: 8.6 and 10 say `Format/Datatype`, in long (`Row
major linear FP16 format`) or short (`Half`) words; 11 has `Datatype` apart from `Format`. Of a plan
with free axes it tells types only when a context with shapes is given, and some versions not even
then (`N/A due to dynamic shapes`): weights and names of kernels speak for such layers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tk.runtime.backends.tensorrt.engine import bare_context
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
    "fp16": re.compile(r"f16f16|h16816|h1688|h884|hgemm|_half_|_fp16"),
    "bf16": re.compile(r"bf16bf16|bf16_|_bf16"),
    "int8": re.compile(r"i8i8|i8i32|imma|int8"),
    "fp8": re.compile(r"e4m3|fp8"),
}
"""Marks in names of kernels: a fused block shows only its float32 ends, but names its kernel."""

NARROW = ("int8", "fp8", "bf16", "fp16")
QUANTIZED = ("int8", "fp8")
NO_WORK = ("shuffle", "constant", "noop", "signal", "wait")
OPAQUE = ("myelin", "foreignnode")
UNKNOWN = "n/a"

SMALLER = {"fp16": 0.75, "bf16": 0.75, "int8": 0.45}
"""Part of the float32 weights' size below which a plan must hold narrower ones."""

WHOLE = 0.95
"""Part of it above which a plan holds float32 weights, if they are so many that nothing else in a
plan (kernels, descriptions of layers) counts."""

MANY = 16 << 20
"""Bytes."""


@dataclass(frozen=True)
class Found:
    """What the layers of a plan run at.

    Attributes:
        layers: precision -> number of layers that compute; reformatting is left out.
        opaque: layers that fuse many nodes and show only their ends.
        silent: layers that tell no type.
    """

    layers: dict[str, int]
    opaque: int = 0
    silent: int = 0

    def share(self, precision: str) -> float:
        """Part of the layers that run at a precision, 0 to 1."""
        return self.layers.get(precision, 0) / max(1, sum(self.layers.values()))

    def to_json(self) -> dict[str, float]:
        """Shares by precision, for the manifest."""
        return {name: round(self.share(name), 3) for name in sorted(self.layers)}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.layers.items()))
        silent = f", {self.silent} silent" if self.silent else ""
        return f"layers: {counts or 'none'}; {self.opaque} opaque{silent}"


def inspect(trt: Any, engine: Any) -> Found:
    """Ask an engine that was built with detailed profiling, at the shapes it was tuned for.

    Raises:
        TkError: the inspector says nothing that can be read.
    """
    inspector = engine.create_engine_inspector()
    if not inspector:
        return read_inspector("")
    context = _context(trt, engine)  # must live as long as the inspector asks it
    if context is not None:
        inspector.execution_context = context
    return read_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON) or "")


def _context(trt: Any, engine: Any) -> Any:
    """A context with the usual shapes and no memory; None when TensorRT makes none."""
    context = bare_context(trt, engine)
    if context is None:
        return None
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            _, usual, _ = engine.get_tensor_profile_shape(name, 0)
            context.set_input_shape(name, tuple(usual))
    return context


def read_inspector(text: str) -> Found:
    """Count layers by precision in the inspector's JSON.

    Raises:
        TkError: no JSON, or no layers with types in it.
    """
    try:
        layers = json.loads(text, strict=False).get("Layers", [])
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
    opaque = [entry for entry in working if _is_opaque(entry)]
    told = [_precision(entry) for entry in working]
    silent = sum(
        not precision and _is_silent(entry) and entry not in opaque
        for precision, entry in zip(told, working, strict=True)
    )
    return Found(dict(Counter(filter(None, told))), len(opaque), silent)


def _kind(entry: dict[str, Any]) -> str:
    return str(entry.get("LayerType", "")).lower()


def _idle(entry: dict[str, Any]) -> bool:
    kind = _kind(entry)
    named = str(entry.get("Name", "")).startswith("Reformatting")
    return named or "reformat" in kind or kind.startswith(NO_WORK)


def _is_opaque(entry: dict[str, Any]) -> bool:
    return _kind(entry) in OPAQUE or "ForeignNode" in str(entry.get("Name", ""))


def _is_silent(entry: dict[str, Any]) -> bool:
    return any(UNKNOWN in text for text in _types(entry))


def _precision(entry: dict[str, Any]) -> str:
    """The narrowest type among inputs, weights and kernel; "" for layers of whole numbers only.

    Outputs do not count: a layer may compute in float32 and then give float16. Nor do narrow
    integers that a generated kernel (`kgen`) reads: it turns them into floats, then computes.
    """
    tactic = f"{entry.get('TacticName', '')}".lower()
    for name in NARROW:
        if TACTICS[name].search(tactic):
            return name
    texts = list(_types(entry))
    counted = [name for name in NARROW if not (name in QUANTIZED and _kind(entry) == "kgen")]
    for name in (*counted, "fp32"):
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


def check_found(found: Found, precision: str, plan_bytes: int, float_bytes: int, name: str) -> str:
    """Refuse a plan that does not run at the precision that was asked for.

    Args:
        found: of the inspector.
        precision: that was asked for.
        plan_bytes: size of the plan.
        float_bytes: size of the weights in float32.
        name: for messages.

    Returns:
        A sentence when neither layers nor size can tell, "" when the request is met.

    Raises:
        CheckFailed: no layer runs at it, or a plan of float32 has layers that do not.
    """
    sizes = f"plan of {plan_bytes / 1e6:.1f} MB for {float_bytes / 1e6:.1f} MB of float32 weights"
    met = _is_met(found, precision, plan_bytes, float_bytes)
    if met is False:
        raise CheckFailed(
            f"TensorRT did not build {name} in {precision}",
            expected=f"layers in {precision}",
            found=f"{found}; {sizes}",
            fix="ask for the precision that it has, or for another TensorRT",
        )
    return "" if met else f"{name} may run in float32: its layers do not tell ({found}; {sizes})"


def _is_met(found: Found, precision: str, plan_bytes: int, float_bytes: int) -> bool | None:
    """Whether a plan runs at a precision; None when nothing tells."""
    if precision == "fp32":
        return not any(found.layers.get(name, 0) for name in NARROW)
    known = found.layers.get(precision, 0) > 0
    if not found.opaque and not found.silent:
        return known
    if plan_bytes < SMALLER[precision] * float_bytes:
        return True
    if known and not found.opaque:
        return True
    # Fused blocks may be float32 inside while one layer beside them is not, so one is no proof.
    whole = plan_bytes > WHOLE * float_bytes and float_bytes > MANY
    return False if whole and not known else None
