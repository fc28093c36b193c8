"""PyTorch module -> ONNX bytes, checked and linted before anything is written."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from torch.export import Dim

from tk.export.model import ExportPart
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import CheckFailed
from tk.runtime.manifest import Part

OPSET = 18
"""GridSample of opset 20 is read wrongly by TensorRT (deploy notes: NVIDIA/TensorRT#4646), and 18
is what the dynamo exporter writes natively: another number is silently not met."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""TensorRT computes some of these wrongly (rotary tables under `If`), and they stop CUDA graphs."""


def to_onnx(part: ExportPart, example: Arrays, metadata: dict[str, str]) -> bytes:
    """Trace a part with the dynamo exporter.

    Args:
        part: module and names.
        example: inputs at a batch above 1 (1 would be baked in as a constant).
        metadata: written into the file.

    Returns:
        A self-contained ONNX file.

    Raises:
        CheckFailed: the graph does not meet what we promise; names the node.
    """
    spec = part.spec
    free = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    dims = {axis: Dim(axis, min=1, max=4096) for axis in sorted(free)}
    shapes = tuple(
        {i: dims[axis] for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    tensors = tuple(torch.from_numpy(example[tensor.name]) for tensor in spec.inputs)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            tensors,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise CheckFailed("the exporter gave no graph", fix="run again with tk --debug export …")
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    for problem in lint(model, spec):
        raise CheckFailed(f"the exported graph is not fit to ship: {problem}")
    file = io.BytesIO()
    onnx.save_model(model, file)
    return file.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush the exporter, which talks to its developers; what matters is linted and measured."""
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lint(model: onnx.ModelProto, spec: Part) -> Iterator[str]:
    """Yield one sentence per promise that a graph breaks.

    Promises: the ONNX checker passes; opset as asked; no control flow; names, dtypes and static
    shapes as in `spec`, with only the named axes free; finite weights.
    """
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", 0) != OPSET:
        yield f"opset {opsets.get('')} was written, {OPSET} was asked for"
    foreign = sorted(domain for domain in opsets if domain not in ("", "ai.onnx"))
    if foreign:
        yield f"operators of another domain: {', '.join(foreign)}"
    for node in model.graph.node:
        if node.op_type in CONTROL_FLOW:
            yield f"node {node.name} is control flow ({node.op_type})"
    for tensors, values in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        found = {value.name: _described(value) for value in values}
        for tensor in tensors:
            wanted = (np.dtype(tensor.dtype).name, tuple(tensor.shape))
            if not _fits(wanted, found.get(tensor.name)):
                yield f"{tensor.name} is {found.get(tensor.name)}, expected {wanted}"
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            yield f"weight {weight.name} has values that are not finite"


_Described = tuple[str, tuple[int | str, ...]]


def _described(value: onnx.ValueInfoProto) -> _Described:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
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
