"""Make TensorRT run at the precision that was asked for, and never silently at another.

10 and 11 take the types of the graph as binding, so there the graph itself must hold them. 8.6
chooses types by itself: it gets a float32 graph, the flag of the precision, and layers that must
stay in float32, with the order to obey.
"""

from __future__ import annotations

from typing import Any

import onnx

from tk.export.tensorrt.bind import bind_to_float
from tk.export.tensorrt.flags import can_be_strong, set_flag
from tk.export.tensorrt.options import BuildOptions
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.errors import EnvironmentLacks, TkError

NEEDS = {"fp32": (0, 0), "fp16": (5, 3), "int8": (6, 1), "bf16": (8, 0)}
"""Smallest compute capability that computes in a precision."""

STRONG, WEAK = "strong", "weak"

SHOWN = 5
"""Nodes that a sentence names."""


def check_gpu(precision: str, gpu: Gpu) -> None:
    """Refuse a precision that the GPU does not compute in.

    Raises:
        EnvironmentLacks: with what it has and what it would need.
    """
    if gpu.capability < NEEDS[precision]:
        major, minor = NEEDS[precision]
        raise EnvironmentLacks(
            f"{gpu.name} does not compute in {precision}",
            expected=f"compute capability {major}.{minor} or newer",
            found=f"{gpu.capability[0]}.{gpu.capability[1]}",
            fix="ask for another --precision",
        )


def graph_precision(graph: onnx.ModelProto) -> str:
    """Precision that the types of a graph ask for: int8 by Q/DQ nodes, else the narrowest float."""
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        return "int8"
    types = {weights.data_type for weights in graph.graph.initializer}
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                types.add(attribute.i)
            elif node.op_type == "Constant" and attribute.name == "value":
                types.add(attribute.t.data_type)
    if onnx.TensorProto.FLOAT16 in types:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in types else "fp32"


def check_graph(trt: Any, graph: onnx.ModelProto, options: BuildOptions) -> str:
    """Compare the graph's types with what is asked for.

    Returns:
        `strong` or `weak` typing.

    Raises:
        TkError: the graph and this TensorRT together cannot give the precision.
    """
    found = graph_precision(graph)
    if can_be_strong(trt):
        if found != options.precision:
            raise TkError(
                f"a plan in {options.precision} needs a graph in {options.precision}: TensorRT "
                f"{trt.__version__} takes the types of the graph",
                found=f"a graph in {found}",
                fix=f"tk export … --to onnx,tensorrt --precision {options.precision}",
            )
        if options.keep:
            raise TkError(
                f"TensorRT {trt.__version__} takes the types of the graph: it cannot keep single "
                "layers in float32",
                fix="keep them in the graph",
            )
        return STRONG
    _check_weak(trt, found, options)
    return WEAK


def _check_weak(trt: Any, found: str, options: BuildOptions) -> None:
    """8.6: no bfloat16; int8 by Q/DQ in the graph; float16 from a float32 graph."""
    if options.precision == "bf16":
        raise TkError(
            f"TensorRT {trt.__version__} has no bfloat16",
            fix="ask for --precision fp16, or use TensorRT 10 or newer",
        )
    wanted = "int8" if options.precision == "int8" else "fp32"
    if found != wanted:
        raise TkError(
            f"TensorRT {trt.__version__} builds {options.precision} from a graph in {wanted}",
            found=f"a graph in {found}",
            fix=f"give it PART.{wanted}.onnx",
        )


def set_weak_types(
    trt: Any, network: Any, config: Any, graph: onnx.GraphProto, options: BuildOptions
) -> str:
    """Ask 8.6 for the precision, and bind the layers that must not have it.

    Args:
        trt: the library.
        network, config: of the build.
        graph: that the network was parsed from.
        options: what is asked for.

    Returns:
        A sentence about what could not be bound, "" when all was.
    """
    if options.precision == "fp32":
        return ""
    why = f"--precision {options.precision}"
    set_flag(trt, config, options.precision.upper(), why)
    if not options.keep:
        return ""
    set_flag(trt, config, "OBEY_PRECISION_CONSTRAINTS", why)
    lost = bind_to_float(trt, network, graph, options.keep)
    if not lost:
        return ""
    return (
        f"TensorRT {trt.__version__} made no layer of {len(lost)} of {len(options.keep)} nodes to "
        f"keep in float32: {', '.join(lost[:SHOWN])}"
    )
