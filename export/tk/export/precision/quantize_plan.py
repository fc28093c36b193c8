"""Which nodes of a graph become int8, and which of their values carry a scale."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from tk.export.flow import Depends, dependence
from tk.runtime.errors import TkError

OPSETS = range(13, 19)
"""QuantizeLinear with an axis begins at 13; above 18 its types change and we write none."""


@dataclass(frozen=True)
class Rules:
    """What is quantised besides, or left out of, Conv, Gemm and MatMul with constant weights.

    Products of two activations (attention) gain little and lose most: they stay in float.

    Attributes:
        heads: the last weighted nodes before the outputs (scores, boxes, embeddings) too: their
            error is not averaged by anything after them.
        stems: the first weighted nodes after the inputs too. They see pixels, cost little and, in
            OpenVINO, were seen to lose more than all the rest of a ViT (cosine 0.995 with, 0.9996
            without).
        conv_outputs: also what a Conv gives, before its Relu, with the scale that follows the Relu:
            the same numbers, and ONNX Runtime has no int8 kernel for a Conv without.
    """

    heads: bool = False
    stems: bool = False
    conv_outputs: bool = True


DEFAULT = Rules()


@dataclass(frozen=True)
class Weight:
    """A constant operand.

    Attributes:
        name: of the initializer.
        axis: of the output channels, one scale each.
        bias: initializer that is added to the product, "" when there is none or it is computed.
    """

    name: str
    axis: int
    bias: str = ""


@dataclass(frozen=True)
class Site:
    """One node that becomes int8: its first input carries a scale, its second is constant.

    Attributes:
        index: of the node in the graph.
        weight: the second input.
    """

    index: int
    weight: Weight


def plan_sites(
    model: onnx.ModelProto, keep: Collection[str] = (), rules: Rules = DEFAULT
) -> list[Site]:
    """Choose the nodes that become int8, in the order of the graph.

    Args:
        model: float32 graph with its constants folded.
        keep: names of nodes that stay in float; names of nodes of other types are allowed.
        rules: what else is in or out.

    Raises:
        TkError: opset outside `OPSETS`, or `keep` names a node that the graph does not have.
    """
    graph = model.graph
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if opset not in OPSETS:
        raise TkError(
            f"a graph of opset {opset} is not quantised",
            expected=f"{OPSETS.start} to {OPSETS.stop - 1}",
        )
    if unknown := sorted(set(keep) - {node.name for node in graph.node}):
        raise TkError(f"the graph has no node {unknown[0]!r} to keep in float")
    depends = dependence(graph)
    weights = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    sites = [
        site
        for index, node in enumerate(graph.node)
        if (site := _site(index, node, weights, depends)) is not None
    ]
    weighted = {site.index for site in sites}
    left = {index for index, node in enumerate(graph.node) if node.name in set(keep)}
    left |= set() if rules.heads else _ends(graph, weighted, forward=False)
    left |= set() if rules.stems else _ends(graph, weighted, forward=True)
    return [site for site in sites if site.index not in left]


def activations(
    model: onnx.ModelProto, keep: Collection[str] = (), rules: Rules = DEFAULT
) -> list[str]:
    """Values whose ranges `quantize_graph` needs for the same arguments; sorted."""
    sites = plan_sites(model, keep, rules)
    needed = set(read_by(model.graph, sites))
    if rules.conv_outputs:
        needed |= set(conv_outputs(model.graph, sites).values())
    return sorted(needed)


def read_by(graph: onnx.GraphProto, sites: Iterable[Site]) -> list[str]:
    """Values that the sites read through a Q/DQ pair, each once, in order of first use."""
    return list(dict.fromkeys(graph.node[site.index].input[0] for site in sites))


def conv_outputs(graph: onnx.GraphProto, sites: Iterable[Site]) -> dict[str, str]:
    """What each quantised Conv gives -> the value whose range it takes.

    That is the value behind its Relu, if a Relu is all that reads it: what the Relu cuts off needs
    no levels, and the pair before it then changes no number of the pair after it.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in graph.output}
    found = {}
    for site in sites:
        node = graph.node[site.index]
        if node.op_type == "Conv" and node.output[0] not in ends:
            after = readers.get(node.output[0], [])
            alone = len(after) == 1 and after[0].op_type == "Relu"
            found[node.output[0]] = after[0].output[0] if alone else node.output[0]
    return found


def siblings(graph: onnx.GraphProto, sites: Iterable[Site]) -> dict[int, list[int]]:
    """MatMuls that read one value (queries, keys and values of an attention) -> all of the group.

    ONNX Runtime has an int8 kernel for a MatMul with a float result only if it is the one reader of
    its Q/DQ pair; as one product they keep it, and every engine has fewer to start.
    """
    groups: dict[str, list[int]] = {}
    for site in sites:
        node = graph.node[site.index]
        if node.op_type == "MatMul":
            groups.setdefault(node.input[0], []).append(site.index)
    return {index: group for group in groups.values() if len(group) > 1 for index in group}


def _site(
    index: int,
    node: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
    depends: dict[str, Depends],
) -> Site | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    if depends.get(node.input[0]) is not Depends.CONTENT:
        return None
    weight = weights.get(node.input[1])
    axis = None if weight is None else _channel_axis(node, weight)
    if weight is None or axis is None:
        return None
    bias = node.input[2] if len(node.input) > 2 and node.input[2] in weights else ""
    return Site(index, Weight(weight.name, axis, bias))


def _channel_axis(node: onnx.NodeProto, weight: onnx.TensorProto) -> int | None:
    """Axis of the output channels; None where int8 kernels do not know the form."""
    if node.op_type == "Conv":
        return 0
    if len(weight.dims) != 2:
        return None
    if node.op_type == "MatMul":
        return 1
    marks = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    plain = not marks.get("transA", 0) and marks.get("alpha", 1) == marks.get("beta", 1) == 1
    return (0 if marks.get("transB", 0) else 1) if plain else None


def _ends(graph: onnx.GraphProto, sites: set[int], *, forward: bool) -> set[int]:
    """Sites with no other site before them (forward) or after them."""
    passed: set[str] = set()  # values with a site between them and the end
    found = set()
    nodes = list(enumerate(graph.node))
    for index, node in nodes if forward else reversed(nodes):
        met, others = (node.input, node.output) if forward else (node.output, node.input)
        behind = any(name in passed for name in met)
        if index in sites and not behind:
            found.add(index)
        if behind or index in sites:
            passed.update(name for name in others if name)
    return found
