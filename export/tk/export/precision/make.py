"""A float32 graph at another precision, with any of its nodes kept: what a search builds from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx

from tk.export.precision.blocks import block_errors, make_blocks
from tk.export.precision.calibrate import Method, calibrate, calibrate_channels
from tk.export.precision.cast import cast_graph
from tk.export.precision.emulate import emulate
from tk.export.precision.formats import ONNX_TYPE, Precision
from tk.export.precision.keep import default_keep
from tk.export.precision.quantize import quantize_graph
from tk.export.precision.quantize_plan import activations, plan_sites
from tk.export.precision.quantize_smooth import smooth, smoothable
from tk.export.precision.ranges import measure_ranges, range_keep
from tk.export.precision.search import Block
from tk.runtime.backends.base import Arrays

Feeds = Sequence[Arrays]
"""Inputs of a part made of real images, one entry per run."""


class Maker(Protocol):
    """Makes graphs of one part at one precision.

    Attributes:
        reasons: node -> why it stays float32 in every candidate.
    """

    reasons: dict[str, str]

    def build(self, keep: frozenset[str]) -> onnx.ModelProto | None:
        """The graph with these nodes in float32 besides; None when nothing is left to lower."""

    def emulated(self, model: onnx.ModelProto) -> onnx.ModelProto | None:
        """What an engine that rounds would compute; None where the graph itself says it."""

    def blocks(self) -> list[Block]:
        """What a search keeps or lowers together."""

    def suspicion(self, model: onnx.ModelProto, blocks: Sequence[Block]) -> dict[str, float]:
        """Block -> error that it adds; empty when that cannot be told."""


class CastMaker:
    """fp16 and bf16: casts, with keep-lists by kind and by the ranges of real images."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, feeds: Feeds) -> None:
        ranges = measure_ranges(model.SerializeToString(), feeds)
        self.model, self.precision, self.feeds = model, precision, feeds
        self.reasons = range_keep(model, ranges, precision) | default_keep(model, precision)

    def build(self, keep: frozenset[str]) -> onnx.ModelProto | None:
        """See `Maker`."""
        cast = cast_graph(self.model, self.precision, keep | self.reasons.keys())
        casts = (node for node in cast.graph.node if node.op_type == "Cast")
        low = ONNX_TYPE[self.precision]
        is_lower = any(a.i == low for node in casts for a in node.attribute if a.name == "to")
        return cast if is_lower else None

    def emulated(self, model: onnx.ModelProto) -> onnx.ModelProto | None:
        """See `Maker`: ONNX Runtime's CPU keeps float32 between operators, an engine rounds."""
        return emulate(model, self.precision)

    def blocks(self) -> list[Block]:
        """See `Maker`."""
        return make_blocks(self.model, self.reasons)

    def suspicion(self, model: onnx.ModelProto, blocks: Sequence[Block]) -> dict[str, float]:
        """See `Maker`."""
        return block_errors(self.model, emulate(model, self.precision), blocks, self.feeds[0])


class QuantizeMaker:
    """int8: LayerNorms evened out (SmoothQuant), ranges of real images, explicit Q/DQ pairs."""

    reasons: dict[str, str]

    def __init__(self, model: onnx.ModelProto, feeds: Feeds, method: Method) -> None:
        self.reasons = {}
        self.model = model
        self.ranges: dict[str, tuple[float, float]] = {}
        if plan_sites(model):
            channels = calibrate_channels(model, feeds, smoothable(model))
            self.model = smooth(model, channels)
            self.ranges = calibrate(self.model, feeds, activations(self.model), method)

    def build(self, keep: frozenset[str]) -> onnx.ModelProto | None:
        """See `Maker`."""
        if not plan_sites(self.model, keep):
            return None
        return quantize_graph(self.model, self.ranges, keep)

    def emulated(self, model: onnx.ModelProto) -> onnx.ModelProto | None:
        """See `Maker`: Q/DQ nodes say all rounding themselves."""
        return None

    def blocks(self) -> list[Block]:
        """See `Maker`: nodes that would be int8, and only these."""
        nodes = self.model.graph.node
        int8 = {nodes[site.index].name for site in plan_sites(self.model)}
        return make_blocks(self.model, [node.name for node in nodes if node.name not in int8])

    def suspicion(self, model: onnx.ModelProto, blocks: Sequence[Block]) -> dict[str, float]:
        """See `Maker`: products that share their input are merged, so values do not correspond."""
        return {}


def make_maker(model: onnx.ModelProto, precision: str, feeds: Feeds, method: Method) -> Maker:
    """The maker of a precision.

    Args:
        model: float32, opset 17 or 18, weights inside.
        precision: `fp16`, `bf16` or `int8`.
        feeds: at least one; for int8 at least `calibrate.MIN_IMAGES`.
        method: of calibration, for int8.
    """
    if precision == "int8":
        return QuantizeMaker(model, feeds, method)
    return CastMaker(model, "bf16" if precision == "bf16" else "fp16", feeds)
