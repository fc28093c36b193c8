"""What stays float32 at every precision, and why.

Two lists. `must_keep` is what the caster never casts: operators that lose their meaning in half
precision, and constants that half precision cannot hold. `default_keep` adds what a graph's shape
tells: preprocessing, the arithmetic behind outputs, coordinates and ranks, position tables, norms.
Neither needs an image; `tk.export.precision.ranges` adds what images tell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from tk.export.precision.flowview import FlowView, attribute_text, name_of, view
from tk.export.precision.formats import LARGEST, SMALLEST_NORMAL, Precision
from tk.export.precision.sides import WORK, is_exact

SUMS = frozenset(
    "ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp "
    "ReduceProd CumSum GlobalAveragePool".split()
)
NORMS = frozenset(
    "LayerNormalization InstanceNormalization GroupNormalization LpNormalization "
    "MeanVarianceNormalization".split()
)
RANKS = frozenset("TopK ArgMax ArgMin NonMaxSuppression".split())
COMPARISONS = frozenset("Less LessOrEqual Greater GreaterOrEqual Equal".split())
WAVES = frozenset({"Sin", "Cos"})
SAMPLERS = frozenset({"GridSample", "RoiAlign"})

TYPES: dict[str, str] = {
    **dict.fromkeys(SUMS, "a sum of many values"),
    **dict.fromkeys(NORMS, "a normalisation: it squares and sums"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "a sum of exponentials"),
    **dict.fromkeys(("Exp", "Log", "Pow", "Softplus"), "its result grows or falls without bound"),
    **dict.fromkeys(RANKS, "ranks of near-equal values would change"),
    **dict.fromkeys(COMPARISONS, "near-equal values would compare as equal"),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Mod"), "a rounded input jumps over a step"),
    **dict.fromkeys(SAMPLERS, "coordinates finer than half precision"),
    **dict.fromkeys(WAVES, "its argument counts positions"),
    **dict.fromkeys(("IsInf", "IsNaN"), "it asks for the limits of float32"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "scales of integers"),
    **dict.fromkeys(
        "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial "
        "EyeLike CastLike HannWindow HammingWindow BlackmanWindow".split(),
        "its type is bound to float32",
    ),
}
"""Operator -> why it stays float32."""

NO_BF16_KERNEL = frozenset({"Clip", "Pad", "ReduceMax", "Resize"})
"""Operators that would run in bfloat16 but that ONNX Runtime has no CUDA kernel for (1.23 to 1.31):
it refuses the whole graph. The other ones that it lacks stay float32 anyhow."""

ARITHMETIC = frozenset("Add Sub Mul Div Pow Sqrt Exp Log Reciprocal Sigmoid Tanh Softplus".split())
"""Cheap operators element by element; behind a head or a coordinate they stay float32."""

CHAIN = ARITHMETIC | SUMS | NORMS - {"LayerNormalization"}
"""What a walk back from a sensitive place goes through, beside moves."""

SUMS_BEHIND = {"output": 4, "other": 6}
"""Operations on two computed values that a walk goes through: box decoding takes 3, sampling
points 6. It stops a walk that would climb the residual stream of a whole network."""

CARRIES = frozenset("Add Sub Mul Div Where Max Min Neg Concat Pad".split())
"""Operators that hand a huge constant on to their result."""

FEW = 16
"""Elements: constants up to this are settings (an epsilon, a limit), larger ones are weights."""


def must_keep(flow: FlowView, precision: Precision) -> dict[str, str]:
    """Node -> why the caster leaves it in float32 whatever is asked."""
    kept: dict[str, str] = {}
    for node in flow.nodes:
        reason = TYPES.get(node.op_type, "")
        if node.op_type == "Resize" and attribute_text(node, "mode", "nearest") != "nearest":
            reason = "it interpolates between coordinates"
        if precision == "bf16" and node.op_type in NO_BF16_KERNEL:
            reason = reason or "ONNX Runtime has no CUDA kernel of it in bfloat16"
        if reason and _touches_float(flow, node):
            kept.setdefault(name_of(node), reason)
    for node, constant in _float_constants(flow):
        values = numpy_helper.to_array(constant)
        if _overflows(values, precision):
            kept.setdefault(name_of(node), f"a constant of {_peak(values):.3g} overflows")
    return kept


def default_keep(model: onnx.ModelProto, precision: Precision) -> dict[str, str]:
    """Node -> why it should stay float32, as far as the graph itself tells; in graph order."""
    flow = view(model)
    kept = must_keep(flow, precision)
    for name, reason in (
        *_tiny_constants(flow, precision),
        *_huge_constants_carried(flow, precision),
        *_preprocessing(flow),
        *_norm_chains(flow),
        *_behind_sensitive(flow),
    ):
        kept.setdefault(name, reason)
    return {name_of(n): kept[name_of(n)] for n in flow.nodes if name_of(n) in kept}


_Reasons = Iterator[tuple[str, str]]


def _touches_float(flow: FlowView, node: onnx.NodeProto) -> bool:
    return any(flow.is_float(name) for name in (*node.input, *node.output))


def _float_constants(flow: FlowView) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Nodes with each float32 constant that they read."""
    for name, constant in flow.constants.items():
        if constant.data_type == TensorProto.FLOAT:
            for node in flow.reading(name):
                yield node, constant
    for node in flow.nodes:
        if node.op_type == "ConstantOfShape":
            for attribute in node.attribute:
                if attribute.t.data_type == TensorProto.FLOAT:
                    yield node, attribute.t


def _peak(values: NDArray[np.generic]) -> float:
    """Largest absolute value that is finite; 0 of nothing."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def _overflows(values: NDArray[np.generic], precision: Precision) -> bool:
    return _peak(values) > LARGEST[precision]


def _tiny_constants(flow: FlowView, precision: Precision) -> _Reasons:
    """An epsilon that becomes zero divides by zero."""
    least = SMALLEST_NORMAL[precision]
    for node, constant in _float_constants(flow):
        values = np.abs(numpy_helper.to_array(constant).reshape(-1))
        if 0 < values.size <= FEW and ((values > 0) & (values < least)).any():
            yield name_of(node), f"a constant of {values[values > 0].min():.3g} underflows"


def _huge_constants_carried(flow: FlowView, precision: Precision) -> _Reasons:
    """A float32 minimum in a mask becomes -inf, and a row of -inf makes Softmax NaN."""
    huge: set[str] = set()
    for name, constant in flow.constants.items():
        is_float = constant.data_type == TensorProto.FLOAT
        if is_float and _overflows(numpy_helper.to_array(constant), precision):
            huge.add(name)
    for node in flow.nodes:
        if any(name in huge for name in node.input):
            yield name_of(node), "it carries a constant that overflows"
            if node.op_type in CARRIES or (is_exact(node) and node.op_type != "Clip"):
                huge.update(node.output)


def _preprocessing(flow: FlowView) -> _Reasons:
    """Scale, mean and deviation of pixels."""
    pixels = {name for name in flow.inputs if flow.types.get(name) == TensorProto.UINT8}
    for node in flow.nodes:
        if not any(name in pixels for name in node.input):
            continue
        if node.op_type == "Cast" or node.op_type in ARITHMETIC:
            yield name_of(node), "preprocessing of pixels"
        elif not is_exact(node):
            continue
        pixels.update(node.output)


def _norm_chains(flow: FlowView) -> _Reasons:
    """`x / sqrt(sum(x * x) + e)`, however it is spelled."""
    for node in flow.nodes:
        if node.op_type not in SUMS or not flow.is_float(node.input[0]):
            continue
        source = flow.making(node.input[0])
        if source is not None and source.op_type == "Mul" and len(set(source.input)) == 1:
            yield name_of(source), f"a square, summed by {name_of(node)}"
            source = flow.making(source.input[0])
        if source is not None and source.op_type == "Sub":
            yield name_of(source), f"centred before {name_of(node)}"
        yield from _after_sum(flow, node)


def _after_sum(flow: FlowView, start: onnx.NodeProto) -> _Reasons:
    """From a sum to what it divides."""
    reason = f"a norm or share by {name_of(start)}"
    todo, seen = [start.output[0]], {start.output[0]}
    while todo:
        name = todo.pop()
        for node in flow.reading(name):
            divides = node.op_type == "Div" and name in node.input[1:]
            alone = len(flow.computed(node)) == 1
            if divides or (alone and node.op_type in ("Sqrt", "Pow", "Reciprocal", "Add")):
                yield name_of(node), reason
            elif not is_exact(node):
                continue
            if not divides and node.output[0] not in seen:
                seen.add(node.output[0])
                todo.append(node.output[0])


def _behind_sensitive(flow: FlowView) -> _Reasons:
    """The last layers with weights and the arithmetic before a place where digits count."""
    for name in flow.outputs:
        if flow.is_float(name):
            yield from _behind(flow, name, f"head of output {name}", SUMS_BEHIND["output"])
    for node in flow.nodes:
        for name, what in _sensitive_inputs(node):
            if flow.is_float(name):
                reason = f"{what} of {name_of(node)}"
                yield from _behind(flow, name, reason, SUMS_BEHIND["other"])


def _sensitive_inputs(node: onnx.NodeProto) -> list[tuple[str, str]]:
    if node.op_type in SAMPLERS:
        return [(name, "coordinates") for name in node.input[1:2]]
    if node.op_type in WAVES:
        return [(name, "argument") for name in node.input]
    if node.op_type in RANKS:
        return [(name, "ranks") for name in node.input[:2]]
    if node.op_type in COMPARISONS:
        return [(name, "sides") for name in node.input]
    return []


def _behind(flow: FlowView, start: str, reason: str, sums: int) -> _Reasons:
    """Walk back from a value through arithmetic and moves, to the layers with weights before them.

    These are kept too: two neighbours whose scores half precision rounds to one number are both a
    peak, and both rank first.
    """
    best = {start: sums}
    todo = [start]
    while todo:
        name = todo.pop()
        node, left = flow.making(name), best[name]
        if node is None:
            continue
        if node.op_type in WORK:
            yield name_of(node), reason
        if not (node.op_type in CHAIN or is_exact(node)):
            continue
        computed = flow.computed(node)
        if node.op_type in CHAIN:
            left -= len(computed) > 1
            if left < 0:
                continue
            yield name_of(node), reason
        for source in computed:
            if best.get(source, -1) < left:
                best[source] = left
                todo.append(source)
