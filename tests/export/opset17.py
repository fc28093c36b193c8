"""What TensorRT 8.6 reads: a graph of a bundle written again for opset 17 computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from tk.export.lint import lint
from tk.export.lower import lower
from tk.export.tensorrt.reads import complaints
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import Bundle


def run_in_both(folder: Path, part: str, inputs: Arrays) -> Arrays:
    """Run a part as it ships and lowered; the lowered graph must be fit to ship, and equal.

    TensorRT must be documented to read both.

    Returns:
        Outputs of the graph that ships.
    """
    graph = onnx.load(folder / f"{part}.fp32.onnx")
    lowered = lower(graph)
    assert lowered.opset_import[0].version == 17
    assert list(lint(lowered, Bundle.open(folder).manifest.parts[part], 17)) == []
    assert list(complaints(graph, "10.3")) == list(complaints(lowered, "8.6")) == []
    expected, found = _run(graph, inputs), _run(lowered, inputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    return expected


def _run(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # Fusions differ between opsets: as written, both are the same sums in the same order.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
