"""Bind layers of TensorRT 8.6 to float32: which layers the nodes of a graph became.

Names do not tell. The parser of 8.6 (onnx-tensorrt, builtin_op_importers.cpp) leaves the layers of
LayerNormalization, of a Clip with one limit, of the sum in Gemm and of the square in ReduceL2
without the node's name, and `NAME_1` may be another node. But it lays the layers of one node one
after another, and gives the last of them the node's own output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import onnx

from tk.export.lint import MOVES
from tk.export.precision.flowview import name_of

UNBOUND = frozenset((
    "CONCATENATION", "CONSTANT", "DEQUANTIZE", "GATHER", "IDENTITY", "NORMALIZATION",
    "QUANTIZE", "SHAPE", "SHUFFLE", "SLICE",
))  # fmt: skip
"""Types of layers that are left alone. Most only move values and have no kernel of their own to ask
for (NVIDIA/TensorRT#2407); Q/DQ layers have their type; and a normalization computes in float32
whatever the flags are (#2781), while binding it turned whole transformers into float32 (#4540)."""


def bind_to_float(
    trt: Any, network: Any, graph: onnx.GraphProto, keep: Collection[str]
) -> list[str]:
    """Bind the layers of nodes to float32, what they compute in and what they give.

    Args:
        trt: TensorRT 8.6.
        network: that was parsed from the graph.
        graph: with the names of nodes and values.
        keep: names of nodes.

    Returns:
        Names of those that compute and of which no layer was found.
    """
    found: set[str] = set()
    for node, layers in layers_of(network, graph):
        if node in keep:
            found.add(node)
            for layer in layers:
                _bind(trt, layer)
    kinds = {name_of(node): node.op_type for node in graph.node}
    return sorted(name for name in set(keep) - found if kinds.get(name) not in MOVES)


def layers_of(network: Any, graph: onnx.GraphProto) -> Iterator[tuple[str, list[Any]]]:
    """Name of a node, and the layers that it became; a node of several outputs comes in pieces."""
    maker = {name: name_of(node) for node in graph.node for name in node.output if name}
    layers: list[Any] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        layers.append(layer)
        names = (layer.get_output(place).name for place in range(layer.num_outputs))
        node = next((maker[name] for name in names if name in maker), "")
        if node:
            yield node, layers
            layers = []


def _bind(trt: Any, layer: Any) -> None:
    """Bind one layer, if there is a float to bind.

    A comparison gives no float but compares floats, which float16 may make equal.
    """
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)

    def is_signal(tensor: Any) -> bool:
        return tensor is not None and tensor.dtype in floats and not tensor.is_shape_tensor

    if layer.type.name in UNBOUND:
        return
    gives = [place for place in range(layer.num_outputs) if is_signal(layer.get_output(place))]
    compares = layer.type == trt.LayerType.ELEMENTWISE and any(
        is_signal(layer.get_input(place)) for place in range(layer.num_inputs)
    )
    if not gives and not compares:
        return
    setattr(layer, "precision", trt.DataType.FLOAT)  # noqa: B010 - gone in TensorRT 11
    set_output_type = getattr(layer, "set_output_type")  # noqa: B009
    for place in gives:
        set_output_type(place, trt.DataType.FLOAT)
