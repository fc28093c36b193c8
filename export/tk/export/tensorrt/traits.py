"""What about a model and a build matters to the table of known-bad pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from tk.export.tensorrt.options import BuildOptions
from tk.runtime.backends.tensorrt.gpu import Gpu

FAMILIES = ("dinov3", "grounding-dino", "segformer", "sam2")
DEFORMABLE = ("grounding-dino", "deformable", "detr", "dfine", "d-fine", "deim")


def find_traits(
    graph: onnx.ModelProto, source: Mapping[str, Any], options: BuildOptions, gpu: Gpu | None
) -> set[str]:
    """Name the traits of one build.

    Args:
        graph: what is built.
        source: of the manifest: names of the architecture and of the checkpoint are looked at.
        options: what is asked for.
        gpu: that it is built for; None when it is not known.
    """
    words = " ".join(str(value) for value in source.values()).lower().replace("_", "-")
    traits = {options.precision, *([gpu.sm] if gpu else [])}
    traits |= {family for family in FAMILIES if family in words}
    if any(word in words for word in DEFORMABLE):
        traits.add("deformable")
    operators = {node.op_type for node in graph.graph.node}
    if "Softmax" in operators and "MatMul" in operators:
        traits.add("attention")
    if "GridSample" in operators:
        traits.add("gridsample")
        opset = max((item.version for item in graph.opset_import if not item.domain), default=0)
        if opset >= 20:
            traits.add("gridsample-20")
    if options.precision != "fp32":
        traits.add("mixed")
    if options.max_batch > 1:
        traits.add("batch")
    return traits
