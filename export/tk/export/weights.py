"""Weights that one ONNX file cannot hold: a second file beside it, hashed like everything else."""

from __future__ import annotations

import io

import onnx
from onnx import TensorProto

LARGEST = 1_800_000_000
"""Bytes of weights inside an ONNX file: protobuf stops at 2 GiB, and the graph needs room too."""

SMALL = 1024
"""Bytes: smaller ones stay inside, for sizes, axes and pads must be seen with the graph."""

ALIGNMENT = 64
"""Bytes: where a weight begins, so that vector instructions can read it in place."""

SUFFIX = ".data"


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the weights inside a model."""
    return sum(len(weight.raw_data) for weight in model.graph.initializer)


def take_out(model: onnx.ModelProto, location: str) -> bytes:
    """Move the weights out of a model, in place.

    Args:
        model: with its weights inside.
        location: name of the file that will hold them, beside the graph.

    Returns:
        Content of that file.
    """
    taken = io.BytesIO()
    for weight in model.graph.initializer:
        raw = weight.raw_data
        if len(raw) <= SMALL:
            continue
        taken.write(bytes(-taken.tell() % ALIGNMENT))
        place = {"location": location, "offset": str(taken.tell()), "length": str(len(raw))}
        taken.write(raw)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)
    return taken.getvalue()
