"""Ranges of activations on real images, measured in ONNX Runtime with bounded memory.

Own code and not `onnxruntime.quantization`: its calibrators keep every value of every picture, and
its pre-processing fails on graphs of the dynamo exporter. Here extremes are reduced inside the
graph, and histograms are made of an even sample of each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tk.export.precision.calibrate_clip import BINS, Histogram, clip_point
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.progress import progress

Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("max", "percentile", "entropy", "mse")

MIN_IMAGES = 32
"""Fewer pictures do not show the range of a tensor; noise instead of pictures shows a wrong one."""

SAMPLE = 1 << 18
"""Values of one tensor and picture that enter its histogram: memory stays bounded at any size."""

Range = tuple[float, float]
"""Smallest and largest value that is represented; what lies outside saturates."""

Channels = dict[str, NDArray[np.float32]]
"""Tensor -> (2, C) float32: smallest and largest value of each entry of its last axis."""

_PREFIX = "tk_calibration/"


def calibrate(
    model: onnx.ModelProto | bytes,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    tensors: Collection[str],
    method: Method = "percentile",
    *,
    percentile: float = 99.999,
    threads: int = 0,
) -> dict[str, Range]:
    """Measure the range of some values of a graph.

    Args:
        model: float32 graph, its weights inside; or its file's content.
        feeds: inputs by name, one entry per picture; passed over twice by all methods but `max`.
        tensors: values to measure, e.g. `activations(…)` of `quantize_plan`.
        method: `max` takes what was seen; `percentile` a share of it; `entropy` clips where least
            information is lost (Migacz 2017); `mse` where the squared error of int8 is least.
        percentile: share of the absolute values inside the range, in percent.
        threads: of ONNX Runtime; 0 takes all cores.

    Returns:
        Tensor -> range. Clipped ranges are symmetric about 0, and never beyond what was seen.

    Raises:
        TkError: fewer than `MIN_IMAGES` pictures, or an unknown method or tensor.
        CheckFailed: a value is not finite.
    """
    _check_request(feeds, method, percentile)
    names = sorted(set(tensors))
    if not names:
        return {}
    proto = _parsed(model)
    _check_known(proto, names)
    extremes, sizes = _extremes(proto, feeds, names, threads)
    if method == "max":
        return extremes
    histograms = _histograms(proto, feeds, extremes, sizes, threads)
    return {
        name: _clipped(extremes[name], clip_point(histograms[name], method, percentile))
        for name in names
    }


def calibrate_channels(
    model: onnx.ModelProto | bytes,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    tensors: Collection[str],
    *,
    threads: int = 0,
) -> Channels:
    """Measure extremes per channel: per entry of the last axis.

    Args:
        model, feeds, tensors, threads: as of `calibrate`.

    Raises:
        TkError, CheckFailed: as `calibrate`.
    """
    _check_request(feeds, "max", 100.0)
    names = sorted(set(tensors))
    if not names:
        return {}
    proto = _parsed(model)
    _check_known(proto, names)
    found: Channels = {}
    for outputs in _run(_with_reductions(proto, names, channels=True), feeds, threads):
        for name in names:
            low, high = outputs[f"{_PREFIX}min/{name}"], outputs[f"{_PREFIX}max/{name}"]
            both = np.stack([low.reshape(-1), high.reshape(-1)]).astype(np.float32)
            _must_be_finite(name, both)
            if name in found:
                both = np.stack(
                    [np.minimum(found[name][0], both[0]), np.maximum(found[name][1], both[1])]
                )
            found[name] = both
    return found


def _check_request(feeds: Sequence[object], method: str, percentile: float) -> None:
    if len(feeds) < MIN_IMAGES:
        raise TkError(
            "too few readable images to measure the ranges of int8",
            expected=f"at least {MIN_IMAGES}",
            found=str(len(feeds)),
            fix="give --images a folder with more pictures like those the model will see",
        )
    if method not in METHODS:
        raise TkError(f"unknown calibration method {method!r}", expected=", ".join(METHODS))
    if not 50 < percentile <= 100:
        raise TkError(f"percentile {percentile:g} makes no range", expected="above 50, at most 100")


def _parsed(model: onnx.ModelProto | bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(model) if isinstance(model, bytes) else model


def _check_known(model: onnx.ModelProto, names: Sequence[str]) -> None:
    made = {name for node in model.graph.node for name in node.output}
    made |= {value.name for value in model.graph.input}
    if unknown := sorted(set(names) - made):
        raise TkError(f"the graph has no value {unknown[0]!r} to calibrate")


def _must_be_finite(name: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise CheckFailed(
            f"value {name} is not finite on a real image: it has no int8 range",
            fix="keep the nodes that read it in float32",
        )


def _extremes(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    names: list[str],
    threads: int,
) -> tuple[dict[str, Range], dict[str, int]]:
    """Smallest and largest value of each tensor, and its largest number of elements."""
    ranges: dict[str, Range] = {}
    sizes: dict[str, int] = dict.fromkeys(names, 0)
    for outputs in _run(_with_reductions(model, names), feeds, threads):
        for name in names:
            low, high = (float(outputs[f"{_PREFIX}{kind}/{name}"]) for kind in ("min", "max"))
            _must_be_finite(name, np.asarray([low, high]))
            known = ranges.get(name, (low, high))
            ranges[name] = (min(low, known[0]), max(high, known[1]))
            sizes[name] = max(sizes[name], int(outputs[f"{_PREFIX}size/{name}"]))
    return ranges, sizes


def _histograms(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    extremes: dict[str, Range],
    sizes: dict[str, int],
    threads: int,
) -> dict[str, Histogram]:
    tops = {name: max(-low, high, 0.0) for name, (low, high) in extremes.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    for outputs in _run(_with_samples(model, sizes), feeds, threads):
        for name, top in tops.items():
            if top > 0:
                values = np.abs(np.asarray(outputs[_PREFIX + name], np.float32))
                counts[name] += np.histogram(values, BINS, (0.0, top))[0]
    return {name: Histogram(counts[name], top) for name, top in tops.items()}


def _clipped(seen: Range, top: float) -> Range:
    return max(seen[0], -top), min(seen[1], top)


def _with_reductions(
    model: onnx.ModelProto, names: list[str], channels: bool = False
) -> onnx.ModelProto:
    """A graph that gives only extremes: of whole tensors with their sizes, or per channel."""
    nodes: list[onnx.NodeProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    weights: list[onnx.TensorProto] = []
    for name in names:
        value = name
        if channels:  # rank is unknown here: (…, C) becomes (rows, C)
            flat = f"{_PREFIX}rows/{name}"
            nodes += _rows(name, flat)
            value = flat
        for kind, op in (("min", "ReduceMin"), ("max", "ReduceMax")):
            made = f"{_PREFIX}{kind}/{name}"
            nodes.append(_reduce(model, op, value, made, channels))
            outputs.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, None))
        if not channels:
            made = f"{_PREFIX}size/{name}"
            nodes.append(helper.make_node("Size", [name], [made]))
            outputs.append(helper.make_tensor_value_info(made, TensorProto.INT64, None))
    if channels:
        weights.append(numpy_helper.from_array(np.asarray([-1], np.int64), f"{_PREFIX}minus"))
        weights.append(numpy_helper.from_array(np.asarray([0], np.int64), f"{_PREFIX}axes"))
    return _extended(model, nodes, outputs, weights)


def _rows(name: str, made: str) -> list[onnx.NodeProto]:
    """Flatten `name` to (rows, C), whatever its rank."""
    last, shape = f"{_PREFIX}last/{name}", f"{_PREFIX}shape/{name}"
    return [
        helper.make_node("Shape", [name], [last], start=-1),
        helper.make_node("Concat", [f"{_PREFIX}minus", last], [shape], axis=0),
        helper.make_node("Reshape", [name, shape], [made]),
    ]


def _reduce(
    model: onnx.ModelProto, op: str, value: str, made: str, channels: bool
) -> onnx.NodeProto:
    """Reduce all axes, or the first; opset 18 made `axes` an input."""
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if not channels:
        return helper.make_node(op, [value], [made], keepdims=0)
    if opset >= 18:
        return helper.make_node(op, [value, f"{_PREFIX}axes"], [made], keepdims=0)
    return helper.make_node(op, [value], [made], axes=[0], keepdims=0)


def _with_samples(model: onnx.ModelProto, sizes: dict[str, int]) -> onnx.ModelProto:
    """A graph that gives every n-th value of each tensor, flat."""
    nodes: list[onnx.NodeProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    weights: dict[str, onnx.TensorProto] = {}

    def constant(number: int) -> str:
        name = f"{_PREFIX}number/{number}"
        weights[name] = numpy_helper.from_array(np.asarray([number], np.int64), name)
        return name

    for name, size in sizes.items():
        flat = f"{_PREFIX}flat/{name}"
        nodes.append(helper.make_node("Reshape", [name, constant(-1)], [flat]))
        ends = [constant(0), constant(np.iinfo(np.int64).max), constant(0), constant(_step(size))]
        nodes.append(helper.make_node("Slice", [flat, *ends], [_PREFIX + name]))
        outputs.append(helper.make_tensor_value_info(_PREFIX + name, TensorProto.FLOAT, None))
    return _extended(model, nodes, outputs, list(weights.values()))


def _step(size: int) -> int:
    """Distance of sampled values: coprime with the size, so that every channel is met evenly."""
    step = max(1, math.ceil(size / SAMPLE))
    while math.gcd(step, size) > 1:
        step += 1
    return step


def _extended(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    """The same graph with other outputs, so that nothing else is kept or computed."""
    graph = helper.make_graph(
        [*model.graph.node, *nodes],
        model.graph.name or "graph",
        list(model.graph.input),
        outputs,
        [*model.graph.initializer, *weights],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _run(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]], threads: int
) -> Iterator[Arrays]:
    """Run a graph on each feed in turn."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in model.graph.output]
    with progress("measure ranges", len(feeds)) as bar:
        for feed in feeds:
            yield dict(zip(names, session.run(names, dict(feed)), strict=True))
            bar.advance()
