"""Even out the channels of a LayerNorm before it is quantised; the float function stays the same.

A few channels of a trained transformer are many times larger than the rest, and one scale per
tensor then leaves the rest few levels. The size of each channel moves into the weights that read
it, which have a scale per output channel (SmoothQuant, Xiao et al. 2022), and its middle into their
bias (Outlier Suppression+, Wei et al. 2023), for symmetric int8 wastes levels on a side without
values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tk.export.fold import drop_unused
from tk.export.precision.calibrate import Channels
from tk.export.precision.quantize_plan import DEFAULT, Rules, Site, plan_sites

STRENGTH = 0.5
"""Share of a channel's size that moves into the weights; 0.5 divides the trouble evenly."""

LARGEST = 1e3
"""No channel grows or shrinks by more, relative to the typical one."""

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reader:
    """A node that reads a LayerNorm.

    Attributes:
        index: of the node.
        axis: of its weight's input channels.
        bias: index of the `Add` behind it whose constant takes the shift; None when there is none.
    """

    index: int
    axis: int
    bias: int | None


def smoothable(
    model: onnx.ModelProto, keep: Collection[str] = (), rules: Rules = DEFAULT
) -> list[str]:
    """Values to measure with `calibrate_channels` before `smooth`, for the same arguments."""
    return sorted(model.graph.node[norm].output[0] for norm in _norms(model, keep, rules))


def smooth(
    model: onnx.ModelProto,
    channels: Channels,
    keep: Collection[str] = (),
    rules: Rules = DEFAULT,
    strength: float = STRENGTH,
) -> onnx.ModelProto:
    """Move sizes and middles of channels from LayerNorms into the weights behind them.

    Args:
        model: float32 graph with its constants folded; it is not changed.
        channels: extremes of the values that `smoothable` lists; others are left as they are.
        keep, rules: as for `quantize_graph`: LayerNorms that others read too stay.
        strength: share of a channel's size that moves, 0 to 1.

    Returns:
        A graph that computes the same up to rounding. Names of nodes and values stay.
    """
    norms = _norms(model, keep, rules)
    editor = _Editor(model.graph)
    for norm, readers in norms.items():
        name = model.graph.node[norm].output[0]
        if name in channels:
            editor.even_out(norm, readers, channels[name], strength)
    return editor.finished(model)


def _norms(model: onnx.ModelProto, keep: Collection[str], rules: Rules) -> dict[int, list[Reader]]:
    """LayerNorms over the last axis that only int8 products read -> these."""
    graph = model.graph
    sites = {site.index: site for site in plan_sites(model, keep, rules)}
    constants = {tensor.name for tensor in graph.initializer}
    ends = {value.name for value in graph.output}
    reading: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            reading.setdefault(name, []).append(index)
    found = {}
    for index, node in enumerate(graph.node):
        axis = {a.name: a.i for a in node.attribute}.get("axis", -1)
        if node.op_type != "LayerNormalization" or axis != -1 or node.output[0] in ends:
            continue
        if not all(name in constants for name in node.input[1:] if name):
            continue
        readers = [
            _reader(graph, sites.get(other), other, reading, ends)
            for other in reading.get(node.output[0], [])
        ]
        whole = [reader for reader in readers if reader is not None]
        if whole and len(whole) == len(readers):
            found[index] = whole
    return found


def _reader(
    graph: onnx.GraphProto,
    site: Site | None,
    index: int,
    reading: dict[str, list[int]],
    ends: set[str],
) -> Reader | None:
    node = graph.node[index]
    if site is None or node.op_type not in ("MatMul", "Gemm"):
        return None
    bias = index if node.op_type == "Gemm" and site.weight.bias else None
    after = reading.get(node.output[0], [])
    if node.op_type == "MatMul" and len(after) == 1 and node.output[0] not in ends:
        constants = {tensor.name for tensor in graph.initializer}
        add = graph.node[after[0]]
        if add.op_type == "Add" and set(add.input) & constants:
            bias = after[0]
    return Reader(index, 1 - site.weight.axis, bias)


class _Editor:
    """Nodes and weights of a copy in the making."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
        self.added: dict[str, onnx.TensorProto] = {}

    def array(self, name: str) -> _Floats:
        """A constant."""
        tensor = self.added.get(name) or self.weights[name]
        return np.asarray(numpy_helper.to_array(tensor), np.float32)

    def replace(self, node: int, position: int, value: _Floats) -> None:
        """Give a node a constant of its own: equal ones are shared by many."""
        owner = self.nodes[node]
        name = f"{owner.output[0]}/smooth_{position}"
        while len(owner.input) <= position:
            owner.input.append("")
        owner.input[position] = name
        self.added[name] = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)

    def even_out(self, norm: int, readers: list[Reader], seen: _Floats, strength: float) -> None:
        """Scale and shift one LayerNorm, and undo it in what reads it."""
        weights = [self.array(self.nodes[reader.index].input[1]) for reader in readers]
        shift = np.zeros(seen.shape[1], np.float32)
        if all(reader.bias is not None for reader in readers):
            shift = (seen[0] + seen[1]) / 2
        size = np.abs(seen - shift).max(axis=0)
        across = [np.abs(w).max(axis=1 - r.axis) for w, r in zip(weights, readers, strict=True)]
        scale = _scales(size, np.maximum.reduce(across), strength)
        node = self.nodes[norm]
        gain = self.array(node.input[1])
        offset = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else 0 * gain
        self.replace(norm, 1, gain / scale)
        self.replace(norm, 2, (offset - shift) / scale)
        for reader, weight in zip(readers, weights, strict=True):
            along = scale[:, None] if reader.axis == 0 else scale[None]
            self.replace(reader.index, 1, weight * along)
            if reader.bias is not None and shift.any():
                moved = np.tensordot(shift, weight, axes=(0, reader.axis))
                self.absorb(reader, moved)

    def absorb(self, reader: Reader, moved: _Floats) -> None:
        """Add what the shift took away to the bias of a reader."""
        index = reader.bias
        if index is None:
            return
        node = self.nodes[index]
        position = 2 if node.op_type == "Gemm" else 1
        if node.op_type == "Add" and node.input[1] not in self.weights:
            position = 0
        self.replace(index, position, self.array(node.input[position]) + moved)

    def finished(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The copy."""
        graph = helper.make_graph(
            self.nodes,
            model.graph.name or "graph",
            list(model.graph.input),
            list(model.graph.output),
            [*model.graph.initializer, *self.added.values()],
            value_info=list(model.graph.value_info),
        )
        drop_unused(graph)
        made = helper.make_model(
            graph, opset_imports=model.opset_import, ir_version=model.ir_version
        )
        made.metadata_props.extend(model.metadata_props)
        made.producer_name, made.producer_version = model.producer_name, model.producer_version
        made.functions.extend(model.functions)
        return made


def _scales(size: _Floats, weight: _Floats, strength: float) -> _Floats:
    """Factor of each channel, 1 for one that is always constant or never read.

    Args:
        size: (C,) largest distance of the channel from its middle.
        weight: (C,) largest weight that reads it.
        strength: 0 to 1.
    """
    alive = (size > 0) & (weight > 0)
    if not alive.any():
        return np.ones_like(size)
    logs = np.zeros_like(size)
    logs[alive] = strength * np.log(size[alive]) - (1 - strength) * np.log(weight[alive])
    logs[alive] -= np.median(logs[alive])
    limit = np.log(LARGEST)
    return np.asarray(np.exp(np.clip(logs, -limit, limit)), np.float32)
