"""Which graphs of a bundle plans are built from, and which of their nodes stay in float32."""

from __future__ import annotations

from collections.abc import Sequence

from tk.runtime.backends.registry import PRECISIONS
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.manifest import Artifact


def asked_of(bundle: Bundle, precisions: Sequence[str]) -> tuple[str, ...]:
    """The precisions that are asked for; all that the bundle has graphs of if none is.

    Raises:
        TkError: it has no graph in one of them.
    """
    having = {a.precision for a in bundle.manifest.artifacts if a.kind == "onnx"}
    asked = tuple(precisions) or tuple(name for name in PRECISIONS if name in having)
    if lost := [name for name in asked if name not in having]:
        raise TkError(
            f"bundle {bundle.path.name} has no graph in {lost[0]} to build a plan from",
            found=", ".join(sorted(having)),
            fix=f"tk export SOURCE {bundle.path} --images DIR --precision {lost[0]}, "
            "where PyTorch is",
        )
    return asked


def graphs_of(bundle: Bundle, asked: Sequence[str]) -> list[tuple[str, Artifact]]:
    """(Precision, graph) of each plan; of a part that lacks a precision its float32 graph, once."""
    found: dict[tuple[str, str], Artifact] = {}
    for part in bundle.manifest.parts:
        own = {
            a.precision: a for a in bundle.manifest.artifacts if a.part == part and a.kind == "onnx"
        }
        for precision in asked:
            taken = precision if precision in own else "fp32"
            if taken in own:
                found.setdefault((part, taken), own[taken])
    return [(precision, graph) for (_, precision), graph in found.items()]


def source_of(
    bundle: Bundle, graph: Artifact, precision: str, *, strong: bool
) -> tuple[str, tuple[str, ...]]:
    """The graph that TensorRT reads, and the nodes that it is told to keep in float32.

    Types of the graph bind TensorRT 10 and newer. 8.6 chooses them itself, so it gets the float32
    graph and the list of what must not be lowered, as far as the graph itself tells.

    Args:
        bundle: that holds both.
        graph: of a part at a precision.
        precision: of the plan.
        strong: whether types of the graph are binding.
    """
    if precision not in ("fp16", "bf16") or strong:
        return graph.file, ()
    import onnx

    from tk.export.precision.cast import float32_nodes
    from tk.export.precision.formats import Precision
    from tk.export.precision.keep import default_keep

    (float32,) = [
        a.file
        for a in bundle.manifest.artifacts
        if a.part == graph.part and a.kind == "onnx" and a.precision == "fp32"
    ]
    model = onnx.load(bundle.path / float32)  # its weights too: constants decide what is kept
    low: Precision = "fp16" if precision == "fp16" else "bf16"
    return float32, float32_nodes(model, low, default_keep(model, low).keys())
