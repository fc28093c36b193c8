"""How large values become on real inputs, and which nodes half precision cannot hold for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tk.export.precision.flowview import FlowView, name_of, view
from tk.export.precision.formats import LARGEST, SMALLEST, Precision
from tk.export.precision.partial import needed_nodes, open_part
from tk.export.shapes import bound_shapes, skeleton
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import TkError

MARGIN = 16.0
"""Values stay this far below the largest number: images that were not measured go further, and so
do partial sums inside a product of matrices."""

LOST = 0.01
"""Share of a weight's length that rounding may cost; where it is more, numbers vanish."""

BUDGET = 2 << 30
"""Bytes of the values that one session may have to hold at once."""

TOGETHER = 512
"""Values measured by one session: the engine takes time with the square of its nodes to load."""

ALIASES = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Identity Expand".split())
"""Operators whose result has the range of their input."""


@dataclass(frozen=True)
class Range:
    """What was seen of one value.

    Attributes:
        largest: absolute value, among the finite ones.
        infinite: whether there was an infinity.
        nan: whether there was a NaN.
    """

    largest: float
    infinite: bool = False
    nan: bool = False

    @property
    def finite(self) -> bool:
        """Whether all values were finite."""
        return not (self.infinite or self.nan)

    def joined(self, other: Range) -> Range:
        """What was seen in either."""
        return Range(
            max(self.largest, other.largest),
            self.infinite or other.infinite,
            self.nan or other.nan,
        )


def measure_ranges(
    model_bytes: bytes,
    feeds: Iterable[Arrays],
    *,
    threads: int = 0,
    budget: int = BUDGET,
    weights: Mapping[str, bytes] | None = None,
) -> dict[str, Range]:
    """Run a float32 graph in ONNX Runtime and note the range of every float32 value in it.

    Values are reduced to two numbers inside the graph, right after they are made; so a run holds
    little more than a plain one. The graph is measured in pieces whose values fit `budget` even if
    the engine kept all of them.

    Args:
        model_bytes: an ONNX file.
        feeds: inputs by name, one entry per run; at least one.
        threads: inside an operator; 0 takes all cores.
        budget: bytes.
        weights: content of the file beside the graph, by its name, where it has one.

    Returns:
        Value -> range over all runs; constants are not listed.

    Raises:
        TkError: no feed, or ONNX Runtime refuses the graph or an input.
    """
    runs = list(feeds)
    if not runs:
        raise TkError("ranges need at least one input to measure")
    model = onnx.load_model_from_string(model_bytes)
    flow = view(model)
    names = [name for name in _measurable(flow) if name not in _sources(flow)]
    sizes = _sizes(model, runs[0])

    def measured(wanted: list[str], *, bounded: bool) -> dict[str, Range]:
        found: dict[str, Range] = {}
        for piece in _pieces(wanted, sizes, budget):
            ends = [name + end for name in piece for end in _ENDS]
            nodes = _probed(flow, piece, bounded)
            found |= _measure(open_part(model, nodes, ends, threads, weights), piece, runs)
        return found

    found = measured(names, bounded=False)
    endless = [name for name, seen in found.items() if seen.infinite]
    for name, seen in measured(endless, bounded=True).items():
        found[name] = replace(found[name], largest=seen.largest)
    for name, source in _sources(flow).items():
        if source in found:
            found[name] = found[source]
    return {name: found[name] for name in _measurable(flow) if name in found}


def range_keep(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    precision: Precision,
    margin: float = MARGIN,
) -> dict[str, str]:
    """Node -> why the measured values keep it in float32; in graph order.

    Partial sums are covered by `margin`; operators that sum over whole axes stay float32 anyway
    (`tk.export.precision.keep.SUMS`).

    Args:
        model: whose ranges were measured.
        ranges: of `measure_ranges`.
        precision: to come.
        margin: factor between the limit and the largest number of `precision`.
    """
    flow = view(model)
    limit = LARGEST[precision] / margin
    lost = _lossy_weights(flow, precision)
    kept: dict[str, str] = {}
    for node in flow.nodes:
        reason = _too_large(node, ranges, limit) or next(
            (lost[name] for name in node.input if name in lost), ""
        )
        if reason:
            kept.setdefault(name_of(node), reason)
    return kept


def _too_large(node: onnx.NodeProto, ranges: Mapping[str, Range], limit: float) -> str:
    for word, names in (("reads", node.input), ("gives", node.output)):
        for name in names:
            seen = ranges.get(name)
            if seen is None:
                continue
            if not seen.finite:
                return f"{word} {name}, which is not finite in float32"
            largest = seen.largest * (_window(node) if word == "reads" else 1)
            if largest > limit:
                return f"{word} {name}, up to {largest:.4g} (limit {limit:.4g})"
    return ""


def _window(node: onnx.NodeProto) -> int:
    """Values that an average adds up before it divides."""
    if node.op_type != "AveragePool":
        return 1
    return math.prod(next((a.ints for a in node.attribute if a.name == "kernel_shape"), [1]))


def _lossy_weights(flow: FlowView, precision: Precision) -> dict[str, str]:
    """Weights that low precision cannot hold -> why."""
    lost = {}
    for name, tensor in flow.constants.items():
        if tensor.data_type != TensorProto.FLOAT or name not in flow.readers:
            continue
        values = np.asarray(numpy_helper.to_array(tensor), np.float32)
        small = np.abs(values) < LARGEST[precision] * 2.0**-28  # others are rounded, never lost
        if precision == "fp16" and small.any():
            share, zeroed = _loss(values)
            if share > LOST:
                lost[name] = f"{share:.0%} of weight {name} is lost, {zeroed} numbers become zero"
    return lost


def _loss(values: NDArray[np.float32]) -> tuple[float, int]:
    """Share of the length that float16 loses, and how many numbers become zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float16).astype(np.float32)
        error = np.where(np.isfinite(rounded), values - rounded, 0)
    length = float(np.linalg.norm(values[np.isfinite(values)].astype(np.float64)))
    zeroed = int(((values != 0) & (np.abs(values) <= SMALLEST["fp16"] / 2)).sum())
    return float(np.linalg.norm(error.astype(np.float64))) / max(length, 1e-300), zeroed


def _measurable(flow: FlowView) -> Iterator[str]:
    """Float32 values that are computed or come from outside."""
    yield from (name for name in flow.inputs if flow.is_float(name))
    for node in flow.nodes:
        if node.op_type != "Constant":
            yield from (name for name in node.output if flow.is_float(name))


def _sources(flow: FlowView) -> dict[str, str]:
    """Values that have the range of another one -> that one."""
    sources: dict[str, str] = {}
    for node in flow.nodes:
        if node.op_type in ALIASES and node.input[0] not in flow.constants:
            name = node.input[0]
            if flow.is_float(name):
                sources[node.output[0]] = sources.get(name, name)
    return sources


def _sizes(model: onnx.ModelProto, feed: Arrays) -> dict[str, int]:
    """Value -> bytes at the batch size of a feed; 0 where nothing is known."""
    free = [
        feed[value.name].shape[place]
        for value in model.graph.input
        if value.name in feed
        for place, axis in enumerate(value.type.tensor_type.shape.dim)
        if not axis.HasField("dim_value")
    ]
    _, shapes = bound_shapes(skeleton(model), max(free, default=1))
    return {name: 4 * math.prod(shape) for name, shape in shapes.items() if shape is not None}


def _pieces(names: Sequence[str], sizes: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    piece: list[str] = []
    used = 0
    for name in names:
        size = sizes.get(name, 0)
        if piece and (used + size > budget or len(piece) == TOGETHER):
            yield piece
            piece, used = [], 0
        piece.append(name)
        used += size
    if piece:
        yield piece


def _probed(flow: FlowView, names: Sequence[str], bounded: bool) -> list[onnx.NodeProto]:
    """The nodes that make some values, each followed by the measurements of what it gives."""
    wanted = set(names)
    nodes = [n for name in flow.inputs if name in wanted for n in _probe(name, bounded)]
    for node in needed_nodes(flow.nodes, names):
        nodes.append(node)
        nodes += [n for name in node.output if name in wanted for n in _probe(name, bounded)]
    return nodes


_ENDS = ("__largest", "__sum")


def _probe(name: str, bounded: bool) -> list[onnx.NodeProto]:
    """Largest absolute value, and a sum that is NaN if a value is.

    Args:
        name: of a value.
        bounded: look past infinities.
    """
    size, zero, far, inner = (f"{name}__{word}" for word in ("abs", "zero", "far", "inner"))
    last = inner if bounded else size
    nothing = helper.make_tensor("value", TensorProto.FLOAT, [], [0.0])
    nodes = [helper.make_node("Abs", [name], [size])]
    if bounded:
        nodes += [
            helper.make_node("IsInf", [size], [far]),
            helper.make_node("Constant", [], [zero], value=nothing),
            helper.make_node("Where", [far, zero, size], [inner]),
        ]
    return [
        *nodes,
        helper.make_node("ReduceMax", [last], [name + _ENDS[0]], keepdims=0),
        helper.make_node("ReduceSum", [last], [name + _ENDS[1]], keepdims=0),
    ]


def _measure(session: Any, names: Sequence[str], runs: Sequence[Arrays]) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for feed in runs:
        try:
            values = iter(session.run(None, dict(feed)))
        except Exception as error:  # ORT raises several unrelated exception types
            raise TkError(f"the graph does not run on what it is measured with: {error}") from error
        for name in names:
            largest, total = (float(next(values)) for _ in _ENDS)
            seen = Range(largest, math.isinf(largest), math.isnan(total) or math.isnan(largest))
            found[name] = found[name].joined(seen) if name in found else seen
    return found
