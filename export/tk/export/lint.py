"""What every graph we ship promises; each broken promise is a sentence that names the node."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tk.export.flow import Depends, dependence, label
from tk.export.shapes import Shapes, bound_shapes, skeleton
from tk.export.sizes import pictures_of
from tk.runtime.manifest import Part

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""TensorRT computes some of these wrongly (rotary tables under `If`), and they stop CUDA graphs."""

GRID_SAMPLE_MODES = frozenset({"bilinear", "nearest", "bicubic"})
"""Spelling up to opset 19. TensorRT reads the `linear` of opset 20 as nearest, silently."""

MOVES = frozenset(
    "Cast CastLike Concat ConstantOfShape Expand Flatten Gather Identity Reshape Slice Split "
    "Squeeze Tile Transpose Unsqueeze".split()
)
"""Operators that may lay a constant out over the batch; anything else would compute a table."""

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)


def lint(model: onnx.ModelProto, spec: Part, opset: int) -> Iterator[str]:
    """Yield one sentence per promise that a graph breaks.

    Promises: the ONNX checker passes; the opset is the one asked for; no control flow; GridSample
    as TensorRT reads it; pictures go into a Cast and nowhere else; LayerNormalization whole; names,
    types and shapes as in `spec`, with only its named axes free; every inner shape static but for
    them; tables are constants; weights are finite.

    Args:
        model: graph with its weights inside.
        spec: declared inputs and outputs.
        opset: that was asked for.
    """
    light = skeleton(model)
    try:
        onnx.checker.check_model(light, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield f"the ONNX checker refuses it: {' '.join(str(error).split())[:300]}"
        return
    yield from check_opset(model, opset)
    yield from check_operators(model, opset)
    yield from check_pictures(model.graph)
    yield from check_layer_norm(model.graph)
    declared = list(check_interface(model.graph, spec))
    yield from declared
    if not declared:  # shapes of a graph with another interface would only repeat the complaint
        yield from check_shapes(light, spec)
    yield from check_constants(model.graph, _types(light))
    yield from check_weights(model.graph)


def check_opset(model: onnx.ModelProto, opset: int) -> Iterator[str]:
    """The exporter keeps another opset than asked with no more than a log message."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", 0) != opset:
        yield f"opset {opsets.get('')} was written, {opset} was asked for"
    foreign = sorted(domain for domain in opsets if domain not in ("", "ai.onnx"))
    if foreign:
        yield f"operators of another domain: {', '.join(foreign)}"


def check_operators(model: onnx.ModelProto, opset: int) -> Iterator[str]:
    """Control flow and GridSample, also inside functions and sub-graphs."""
    for node in all_nodes(model):
        if node.op_type in CONTROL_FLOW:
            yield f"node {label(node)} is control flow"
        if node.op_type == "GridSample":
            mode = {a.name: a.s.decode() for a in node.attribute}.get("mode", "bilinear")
            if opset >= 20:
                yield f"node {label(node)} is GridSample of opset {opset}, below 20 is needed"
            elif mode not in GRID_SAMPLE_MODES:
                yield f"node {label(node)} has mode {mode!r}, which opset {opset} does not know"


def check_pictures(graph: onnx.GraphProto) -> Iterator[str]:
    """A uint8 input is cast before anything else is done with it, see `tk.export.sizes`."""
    pictures = pictures_of(graph)
    for node in graph.node:
        read = sorted(pictures.intersection(node.input))
        if read and node.op_type != "Cast":
            yield f"node {label(node)} reads the uint8 input {read[0]}, which only a Cast may"


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: of its graph, its functions and their sub-graphs."""
    todo = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while todo:
        node = todo.pop(0)
        yield node
        for attribute in node.attribute:
            todo += [*attribute.g.node, *(inner for g in attribute.graphs for inner in g.node)]


def check_layer_norm(graph: onnx.GraphProto) -> Iterator[str]:
    """Name the subtraction of every `(x - mean) / sqrt(mean((x - mean)^2) + e)`.

    Taken apart it overflows in half precision, and engines do not fuse it.
    """
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type != "Sub" or len(node.input) != 2:
            continue
        mean = made.get(node.input[1])
        if mean is None or mean.op_type != "ReduceMean" or mean.input[0] != node.input[0]:
            continue
        if _reaches_root(node.output[0], readers):
            yield f"node {label(node)} begins a LayerNormalization that was taken apart"


def _reaches_root(name: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a centred value is squared, averaged and rooted."""
    path: tuple[frozenset[str], ...] = (
        frozenset({"Pow", "Mul"}),
        frozenset({"ReduceMean"}),
        frozenset({"Add", "Clip", "Max"}),
        frozenset({"Sqrt", "Pow"}),
    )
    reached = {name}
    for step, kinds in enumerate(path):
        reached = {
            node.output[0]
            for value in reached
            for node in readers.get(value, [])
            if node.op_type in kinds and (step or node.op_type == "Pow" or _squares(node))
        }
    return bool(reached)


def _squares(node: onnx.NodeProto) -> bool:
    return len(set(node.input)) == 1


_Described = tuple[str, tuple[int | str, ...]]


def check_interface(graph: onnx.GraphProto, spec: Part) -> Iterator[str]:
    """Inputs and outputs, as the manifest will declare them."""
    for tensors, values in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
        found = {value.name: _described(value) for value in values}
        for tensor in tensors:
            wanted = (np.dtype(tensor.dtype).name, tuple(tensor.shape))
            if not _fits(wanted, found.get(tensor.name)):
                yield f"{tensor.name} is {found.get(tensor.name)}, expected {wanted}"
        for name in sorted(set(found) - {tensor.name for tensor in tensors}):
            yield f"{name} is {found[name]}, which the part does not declare"


def _described(value: onnx.ValueInfoProto) -> _Described:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    axes = tensor.shape.dim
    return dtype, tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in axes)


def _fits(wanted: _Described, found: _Described | None) -> bool:
    if found is None or wanted[0] != found[0] or len(wanted[1]) != len(found[1]):
        return False
    # A free axis must be free in the file; its name there is the exporter's choice.
    return all(
        isinstance(b, str) if isinstance(a, str) else a == b
        for a, b in zip(wanted[1], found[1], strict=True)
    )


def check_shapes(light: onnx.ModelProto, spec: Part) -> Iterator[str]:
    """With the free axes fixed at two sizes, every shape is known, and outputs follow the axes.

    Args:
        light: the graph without its large weights.
        spec: whose named axes are free.
    """
    for size in (2, 3):
        graph, shapes = bound_shapes(light, size)
        unknown = next((node for node in graph.node if _is_unknown(node, shapes)), None)
        if unknown is not None:
            yield f"node {label(unknown)} has a shape that depends on the content of its inputs"
            return
        for tensor in spec.outputs:
            wanted = tuple(size if isinstance(axis, str) else axis for axis in tensor.shape)
            found = shapes.get(tensor.name)
            if found is not None and found != wanted:
                yield (
                    f"output {tensor.name} is {found} for a batch of {size}, expected {wanted}: "
                    "the batch size is baked in"
                )
                return


def _is_unknown(node: onnx.NodeProto, shapes: Shapes) -> bool:
    return any(shapes.get(name) is None for name in node.output if name)


def check_constants(graph: onnx.GraphProto, types: dict[str, int]) -> Iterator[str]:
    """Position tables are constants.

    A value that depends on no input must have been folded, but for int8 weights, which engines
    want to see as integers with a DequantizeLinear behind them. A float that depends only on the
    shape of an input may be laid out over the batch, not computed: that would be a table built anew
    at each run. Integers (sizes, indices of rows) may be computed from the batch size.

    Args:
        graph: with its weights.
        types: value -> element type.
    """
    depends = dependence(graph)
    for node in graph.node:
        strongest = max((depends[name] for name in node.output), default=Depends.CONTENT)
        if strongest is Depends.NOTHING and node.op_type not in ("Constant", "DequantizeLinear"):
            yield f"node {label(node)} depends on no input and is not a constant"
        is_float = any(types.get(name) in FLOATS for name in node.output)
        if strongest is Depends.SHAPE and is_float and node.op_type not in MOVES:
            yield f"node {label(node)} computes a table from the shape of an input at each run"


def _types(light: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(light).graph
    return {value.name: value.type.tensor_type.elem_type for value in graph.value_info}


def check_weights(graph: onnx.GraphProto) -> Iterator[str]:
    """Weights are finite, also those in `Constant` nodes."""
    constants = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    for name, tensor in [*((weight.name, weight) for weight in graph.initializer), *constants]:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            yield f"weight {name} has values that are not finite"
