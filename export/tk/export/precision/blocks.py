"""Cut a graph into the blocks that a search keeps or casts, and say which look guilty."""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray

from tk.export.precision.flowview import FlowView, name_of, view
from tk.export.precision.keep import NORMS
from tk.export.precision.partial import needed_nodes, open_part
from tk.export.precision.search import Block
from tk.export.precision.sides import WORK
from tk.runtime.backends.base import Arrays

BLOCKS = 32
"""Blocks of a graph: more cost more builds, fewer keep more than is needed."""

TOGETHER = 8
"""Values looked at in one run: at full size all of them would fill the memory."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter writes the names of the modules that a node comes from."""

_Doubles = NDArray[np.float64]

NORMAL = NORMS | {"BatchNormalization"}


def make_blocks(
    model: onnx.ModelProto, skip: Collection[str] = (), most: int = BLOCKS
) -> list[Block]:
    """Cut a graph into runs of nodes, in its own order.

    A cut lies where a normalisation begins or the module of the nodes changes; neighbours are
    joined, the smallest first, until there are few enough.

    Args:
        model: the float32 graph.
        skip: nodes that stay float32 anyway.
        most: number of blocks.

    Returns:
        Disjoint blocks of all nodes with float32 work that are not skipped.
    """
    flow = view(model)
    runs: list[list[onnx.NodeProto]] = []
    before = ""
    for node in flow.nodes:
        if not any(flow.is_float(name) for name in node.output) or node.op_type == "Constant":
            continue
        scope = scope_of(node)
        changed = bool(scope) and scope != before
        if not runs or node.op_type in NORMAL or changed:
            runs.append([])
        before = scope or before
        runs[-1].append(node)
    skipped = frozenset(skip)
    runs = [kept for run in runs if (kept := [n for n in run if name_of(n) not in skipped])]
    return _named(_joined(runs, max(1, most)))


def scope_of(node: onnx.NodeProto) -> str:
    """Dotted name of the module that a node was traced from; "" where the file does not say."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            return str(scopes[-2]) if len(scopes) > 1 else ""
    name = str(node.name)
    return name.rsplit("/", 1)[0].strip("/").replace("/", ".") if "/" in name.strip("/") else ""


def _joined(runs: list[list[onnx.NodeProto]], most: int) -> list[list[onnx.NodeProto]]:
    """Join the two neighbours with the least work until there are few enough."""
    runs = list(runs)
    while len(runs) > most:
        costs = [_work(a) + _work(b) for a, b in pairwise(runs)]
        place = costs.index(min(costs))
        runs[place : place + 2] = [runs[place] + runs[place + 1]]
    return runs


def _work(run: Sequence[onnx.NodeProto]) -> float:
    return sum(1.0 if node.op_type in WORK else 0.1 for node in run)


def _named(runs: Sequence[Sequence[onnx.NodeProto]]) -> list[Block]:
    """Name blocks by their first and last module, else by their first and last node."""
    blocks = []
    for index, run in enumerate(runs):
        first, last = (scope_of(node) or name_of(node) for node in (run[0], run[-1]))
        words = first if first == last else f"{first} … {last}"
        nodes = tuple(dict.fromkeys(name_of(node) for node in run))
        blocks.append(Block(f"{index}: {words}", nodes))
    return blocks


def block_errors(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    blocks: Sequence[Block],
    feed: Arrays,
    threads: int = 0,
) -> dict[str, float]:
    """How much error each block adds on one input: its relative error less that of what it reads.

    Args:
        reference: the float32 graph.
        candidate: the same, cast; runs in ONNX Runtime, maybe after `emulate`.
        blocks: of `make_blocks`.
        feed: inputs by name.
        threads: inside an operator; 0 takes all cores.

    Returns:
        Block -> added error, at least 0; infinite where a value stops being finite.
    """
    flow = view(reference)
    ends = {block.name: _end(flow, block) for block in blocks}
    wanted = list(dict.fromkeys(name for name in ends.values() if name))
    errors: dict[str, float] = {}
    for start in range(0, len(wanted), TOGETHER):
        names = wanted[start : start + TOGETHER]
        expected = _values(reference, names, feed, threads)
        found = _values(candidate, names, feed, threads)
        errors |= dict(zip(names, map(_relative, expected, found), strict=True))
    added: dict[str, float] = {}
    for place, block in enumerate(blocks):
        own = errors.get(ends[block.name], 0.0)
        before = errors.get(ends[blocks[place - 1].name], 0.0) if place else 0.0
        # After the first infinity everything is wrong: only the first one is to blame.
        added[block.name] = max(0.0, own - before) if math.isfinite(before) else 0.0
    return added


def _end(flow: FlowView, block: Block) -> str:
    """The last computed value of a block."""
    names = frozenset(block.nodes)
    for node in reversed(flow.nodes):
        if name_of(node) in names:
            return next((name for name in node.output if flow.is_float(name)), "")
    return ""


def _values(
    model: onnx.ModelProto, names: Sequence[str], feed: Arrays, threads: int
) -> list[_Doubles]:
    nodes = needed_nodes(model.graph.node, names)
    values = open_part(model, nodes, names, threads).run(None, dict(feed))
    return [np.asarray(value, np.float64) for value in values]


def _relative(expected: _Doubles, found: _Doubles) -> float:
    finite = np.isfinite(expected)
    if not np.isfinite(found[finite]).all():
        return math.inf
    length = float(np.linalg.norm(expected[finite]))
    return float(np.linalg.norm((expected - found)[finite])) / max(length, 1e-30)
