"""PyTorch module -> ONNX bytes, checked and linted before anything is written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import torch
from torch.export import Dim

from tk.export import weights
from tk.export.fold import fold_constants
from tk.export.lint import lint
from tk.export.lower import lower
from tk.export.model import ExportPart
from tk.export.pads import drop_empty_pads
from tk.export.sizes import plain_sizes
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.manifest import Part

OPSET = 18
"""GridSample of opset 20 is read wrongly by TensorRT (deploy notes: NVIDIA/TensorRT#4646), and 18
is what the dynamo exporter writes natively: another number is silently not met."""

OPSETS = (17, 18)
"""17 is for TensorRT 8.6; it is made from 18 by `lower`."""

SHOWN = 5
"""Broken promises that an error lists."""


@dataclass(frozen=True)
class Graph:
    """One ONNX file.

    Attributes:
        data: its content.
        weights: content of the file beside it that holds its weights; b"" when they are inside.
    """

    data: bytes
    weights: bytes = b""


def to_onnx(
    part: ExportPart,
    example: Arrays,
    metadata: dict[str, str],
    opset: int = OPSET,
    file: str = "model.onnx",
) -> Graph:
    """Trace a part with the dynamo exporter, fold its constants, lint it, lower it if asked.

    Args:
        part: module and names.
        example: inputs at a batch above 1 (1 would be baked in as a constant).
        metadata: written into the file.
        opset: one of `OPSETS`.
        file: its name; weights above `weights.LARGEST` go into `file` + `weights.SUFFIX`.

    Raises:
        CheckFailed: the graph does not meet what we promise; names the node.
        TkError: another opset.
    """
    if opset not in OPSETS:
        raise TkError(f"opset {opset} is not written", expected=" or ".join(map(str, OPSETS)))
    model = _traced(part, example)
    plain_sizes(model.graph)
    fold_constants(model)
    drop_empty_pads(model.graph)
    must_be_fit(model, part.spec, OPSET)
    if opset != OPSET:
        model = lower(model)
        must_be_fit(model, part.spec, opset)
    onnx.helper.set_model_props(model, metadata)
    outside = b""
    if weights.weight_bytes(model) > weights.LARGEST:
        outside = weights.take_out(model, file + weights.SUFFIX)
    return Graph(model.SerializeToString(deterministic=True), outside)


def must_be_fit(model: onnx.ModelProto, spec: Part, opset: int) -> None:
    """Lint a graph.

    Raises:
        CheckFailed: it does not meet what we promise; names the node.
    """
    problems = list(lint(model, spec, opset))
    if problems:
        more = f"\n    … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckFailed(
            f"the exported graph is not fit to ship: {problems[0]}",
            found="\n    ".join(problems[:SHOWN]) + more if len(problems) > 1 else "",
        )


def _traced(part: ExportPart, example: Arrays) -> onnx.ModelProto:
    spec = part.spec
    free = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    dims = {axis: Dim(axis, min=1, max=4096) for axis in sorted(free)}
    shapes = tuple(
        {i: dims[axis] for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    tensors = tuple(torch.from_numpy(example[tensor.name]) for tensor in spec.inputs)
    with _quiet(), part.patch(), torch.no_grad():
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
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush the exporter, which talks to its developers; what matters is linted and measured."""
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
