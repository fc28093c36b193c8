"""What a TensorRT would say to the graphs of a bundle, told on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from tk.export.tensorrt.adapt import adapt
from tk.export.tensorrt.build import check_plugins, profile_shapes
from tk.export.tensorrt.choose import asked_of, graphs_of, source_of
from tk.export.tensorrt.documented import is_strong
from tk.export.tensorrt.known_bad import matching
from tk.export.tensorrt.options import BuildOptions
from tk.export.tensorrt.reads import complaints
from tk.export.tensorrt.traits import find_traits
from tk.runtime.backends.tensorrt.library import OLDEST, parse_version
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.manifest import Artifact, Part

MAJORS = ((8,), (10,), (11,))
"""Major versions that tk builds for."""


@dataclass
class Outlook:
    """What a build of one plan would meet.

    Attributes:
        part, precision: of the plan.
        graph: file that it is built from.
        nodes: of the graph; 0 when it was not looked at.
        kept: nodes of it that are bound to float32 (8.6).
        refused: why it would not be built, a sentence each.
        warnings: what others met with such models.
    """

    part: str
    precision: str
    graph: str
    nodes: int = 0
    kept: int = 0
    refused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_bundle(
    path: Path, precisions: Sequence[str], version: str, options: BuildOptions | None = None
) -> list[Outlook]:
    """Look at each graph that plans would be built from.

    Args:
        path: the bundle.
        precisions: of the plans; empty takes all that the bundle has graphs of.
        version: of TensorRT, such as `8.6` or `10.3`.
        options: of the build; precision and batch are set by part.

    Raises:
        TkError: not a bundle, no such graphs, or no version that tk supports.
    """
    numbers = parse_version(version)
    if numbers[:1] not in MAJORS or numbers[:2] < OLDEST:
        raise TkError(
            f"TensorRT {version} is not one that tk builds for",
            expected="8.6, 10 or 11 with its minor number, such as 10.3",
        )
    whole = ".".join(str(number) for number in (*numbers, 0, 0)[: max(3, len(numbers))])
    bundle = Bundle.open(path)
    asked = asked_of(bundle, precisions)
    wanted = options or BuildOptions()
    return [
        _look(bundle, graph, precision, whole, wanted)
        for precision, graph in graphs_of(bundle, asked)
    ]


def _look(
    bundle: Bundle, graph: Artifact, precision: str, version: str, wanted: BuildOptions
) -> Outlook:
    part = bundle.manifest.parts[graph.part]
    strong = is_strong(version)
    if precision == "bf16" and not strong:
        refused = [f"TensorRT {version} has no bfloat16; ask for fp16"]
        return Outlook(graph.part, precision, graph.file, refused=refused)
    source, keep = source_of(bundle, graph, precision, strong=strong)
    model = onnx.load(bundle.path / source, load_external_data=False)
    batch = min(wanted.opt_batch, part.max_batch)
    options = replace(wanted, precision=precision, max_batch=part.max_batch, opt_batch=batch)
    rows = matching(version, find_traits(model, bundle.manifest.source, options, None))
    adapt(model, weak=not strong)
    return Outlook(
        graph.part,
        precision,
        source,
        nodes=len(model.graph.node),
        kept=len(keep),
        refused=[
            *(f"this release: {row}" for row in rows if row.refuse),
            *_wide_inputs(part, version),
            *_not_built(part, model, options),
            *complaints(model, version),
        ],
        warnings=[str(row) for row in rows if not row.refuse],
    )


def _not_built(part: Part, model: onnx.ModelProto, options: BuildOptions) -> Iterator[str]:
    """What our own builder refuses, whatever the version."""
    try:
        check_plugins(model, options)
        for spec in part.inputs:
            profile_shapes(spec, part, options)
    except TkError as error:
        yield f"{error.what}; {error.fix}"


def _wide_inputs(part: Part, version: str) -> Iterator[str]:
    """8.6 has no INT64 arrays; inside of a graph its parser makes INT32 of them."""
    for spec in (*part.inputs, *part.outputs):
        if spec.dtype == "int64" and not is_strong(version):
            yield f"{spec.name} is int64, which TensorRT {version} neither takes nor gives"
