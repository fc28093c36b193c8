"""Run a part of a graph in ONNX Runtime: the values asked for, and what they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

from tk.runtime.errors import EnvironmentLacks, TkError


def needed_nodes(nodes: Sequence[onnx.NodeProto], names: Collection[str]) -> list[onnx.NodeProto]:
    """Nodes that some values depend on, in their order."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needed: set[int] = set()
    todo = list(names)
    while todo:
        index = maker.get(todo.pop())
        if index is not None and index not in needed:
            needed.add(index)
            todo += nodes[index].input
    return [nodes[index] for index in sorted(needed)]


def open_part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    threads: int,
    weights: Mapping[str, bytes] | None = None,
) -> Any:
    """Load nodes of a graph, as they stand: nothing is fused, and they run in their order.

    Values are freed after their last reader; the engine's own order would let readers wait to the
    end, and hold all values until then.

    Args:
        model: the graph, for inputs, weights and opset.
        nodes: to run.
        outputs: values to give.
        threads: inside an operator; 0 takes all cores.
        weights: content of the file beside the graph, by its name, where it has one.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        EnvironmentLacks: no ONNX Runtime.
        TkError: it refuses the graph.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentLacks(
            "graphs are measured with ONNX Runtime", fix="pip install 'tk-vision[cpu]'"
        ) from error
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        list(nodes),
        "part",
        list(model.graph.input),
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [weight for weight in model.graph.initializer if weight.name in read],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings speak to its developers
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if weights:
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(data) for data in weights.values()]
        )
    try:
        return ort.InferenceSession(
            part.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ORT raises several unrelated exception types
        raise TkError(f"ONNX Runtime refuses the graph to be measured: {error}") from error
