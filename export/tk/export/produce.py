"""Make and judge all files of a bundle that can be run: float32 first, then what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import onnx
import orjson

from tk.export.gate import Judgement, Reference, judge_artifact, judges, summarise
from tk.export.graph import Graph, must_be_fit, to_onnx
from tk.export.model import ExportModel, ExportPart
from tk.export.pads import drop_empty_pads
from tk.export.pictures import Pictures
from tk.export.precision.cast import float32_nodes
from tk.export.precision.emulated_session import EMULATED
from tk.export.precision.make import Maker, make_maker
from tk.export.precision.sides import WORK
from tk.export.reach import BuildPlan, File, Reach, Reached, graph_file, sum_up, with_facts
from tk.export.request import Request
from tk.export.sizes import plain_sizes
from tk.export.weights import SUFFIX
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.preprocess import spec_to_json
from tk.runtime.progress import progress

RANGE_ROWS, RANGE_RUNS = 4, 4
"""Rows and runs that show how large values become, for fp16 and bf16."""

REFERENCE_BACKEND = "onnxruntime-cpu"

NO_BF16 = frozenset({"Conv", "ConvTranspose", "DeformConv"})
"""Work that has no bfloat16 before opset 22."""


@dataclass
class Product:
    """Files with what the gate says of them.

    Attributes:
        files: to be written.
        judgement: their figures.
        precisions: precision -> part -> report, for parity.json.
        summary: one line per precision, for a person.
    """

    files: list[File] = field(default_factory=list)
    judgement: Judgement = field(default_factory=Judgement)
    precisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)


class Feeds(Sequence[Arrays]):
    """Inputs of a part from images, a few per run; made when asked for, so that memory is bounded.

    Args:
        part: that is fed.
        canvases: images.
        rows: of the batch.
        step: images from one run to the next.
        runs: at most.
    """

    def __init__(self, part: ExportPart, canvases: Any, rows: int, step: int, runs: int) -> None:
        self._part, self._canvases, self._rows, self._step = part, canvases, rows, step
        self._runs = max(1, min(runs, len(canvases) // step))

    def __len__(self) -> int:
        return self._runs

    @overload
    def __getitem__(self, index: int) -> Arrays: ...
    @overload
    def __getitem__(self, index: slice) -> list[Arrays]: ...
    def __getitem__(self, index: int | slice) -> Arrays | list[Arrays]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._runs))]
        if not 0 <= index < self._runs:
            raise IndexError(index)
        start = index * self._step
        return self._part.feed(self._canvases[start : start + self._step], self._rows)


class Producer:
    """Makes the files of one model.

    Args:
        model: what to export.
        pictures: real images.
        opset: of the graphs.
        request: what is asked for.
        folder: of the bundle in the making; graphs are written there for TensorRT to read.
    """

    def __init__(
        self, model: ExportModel, pictures: Pictures, opset: int, request: Request, folder: Path
    ) -> None:
        self.model, self.pictures, self.opset = model, pictures, opset
        self.request, self.folder = request, folder
        thorough = "int8" in request.precisions
        self.references = {
            name: Reference(model, name, pictures.gate, thorough) for name in model.parts
        }
        self.product = Product()

    def make_float32(self) -> dict[str, File]:
        """Export the reference graphs and judge them.

        Raises:
            CheckFailed: a graph is not equal to its PyTorch model.
        """
        graphs = {}
        for name, part in self.model.parts.items():
            file = f"{name}.fp32.onnx"
            graph = to_onnx(
                part, part.feed(self.pictures.gate, 2), self._metadata(name), self.opset, file
            )
            graphs[name] = self._file(file, name, graph)
        judgement = Judgement()
        for name, graph_ in graphs.items():
            reference = self.references[name]
            with progress(f"gate {name}.fp32", reference.steps * len(judges("onnx"))) as bar:
                own = judge_artifact(
                    reference, graph_.artifact, graph_.data, graph_.weights, bar=bar
                )
            _must_pass_float32(own)
            judgement += own
        files = list(graphs.values())
        for name, graph_ in graphs.items():
            if self.request.plans:
                plan = self._planner(name, graph_, "fp32", None)(graph_, frozenset())
                own = judge_artifact(self.references[name], plan.artifact, plan.data)
                judgement += own
                _must_pass_plan(plan, own)
                files.append(plan)
        self._add("fp32", files, judgement, {})
        return graphs

    def lower(self, precision: str, graphs: dict[str, File]) -> None:
        """Make and judge one more precision of every part that can have it.

        Args:
            precision: `fp16`, `bf16` or `int8`.
            graphs: part -> its float32 graph.

        Raises:
            CheckFailed: a part does not reach the precision.
            TkError: no part has anything to compute in it.
        """
        reached: dict[str, Reached] = {}
        for name, graph in graphs.items():
            found = self._reach(name, precision, graph)
            if found is not None:
                reached[name] = found
        if not reached:
            raise _nothing_to_lower(precision, graphs)
        files = [file for found in reached.values() for file in found.candidate.files]
        judgement = sum((f.candidate.judgement for f in reached.values()), Judgement())
        self._add(precision, files, judgement, reached)

    def _reach(self, name: str, precision: str, graph: File) -> Reached | None:
        if graph.weights:
            raise TkError(
                f"part {name} is too large for {precision}: its weights lie beside the graph",
                expected="a graph of less than 1.8 GB",
                fix="export it in fp32 only",
            )
        model = onnx.load_model_from_string(graph.data)
        plain_sizes(model.graph)  # of a bundle that an older tk wrote
        drop_empty_pads(model.graph)
        maker = make_maker(model, precision, self._feeds(name, precision), self.request.method)
        part, file = self.model.parts[name], f"{name}.{precision}.onnx"

        def named(candidate: onnx.ModelProto) -> File:
            must_be_fit(candidate, part.spec, self.opset)
            data = candidate.SerializeToString(deterministic=True)
            return graph_file(file, name, precision, data, {"opset": self.opset})

        planner = self._planner(name, graph, precision, maker) if self.request.plans else None
        reach = Reach(self.references[name], maker, precision, named, planner)
        return reach.run(self.request)

    def _feeds(self, name: str, precision: str) -> Feeds:
        part = self.model.parts[name]
        if precision == "int8":
            rows = part.spec.max_batch if part.spec.one_picture else 1
            canvases = self.pictures.calibration
            return Feeds(part, canvases, rows, 1, len(canvases))
        rows = min(RANGE_ROWS, part.spec.max_batch)
        return Feeds(part, self.pictures.gate, rows, min(rows, len(self.pictures.gate)), RANGE_RUNS)

    def _planner(self, name: str, float32: File, precision: str, maker: Maker | None) -> BuildPlan:
        """Builds plans of one part; the graphs must lie on disk, for TensorRT reads files."""
        from tk.export.tensorrt.build import build_plan
        from tk.export.tensorrt.flags import can_be_strong
        from tk.export.tensorrt.options import BuildOptions
        from tk.runtime.backends.tensorrt import library

        strong = can_be_strong(library.load())
        spec, request = self.model.parts[name].spec, self.request

        def build(graph: File, keep: frozenset[str]) -> File:
            source, kept = graph, tuple[str, ...]()
            if precision == "fp16" and not strong and maker is not None:
                source = float32  # 8.6 chooses types itself; it is told which layers it must not
                model = onnx.load_model_from_string(float32.data)
                kept = float32_nodes(model, "fp16", keep | maker.reasons.keys())
            write_file(source, self.folder)
            options = BuildOptions(
                precision=precision,
                max_batch=spec.max_batch,
                keep=kept,
                level=request.level,
                workspace=request.workspace,
                hardware=request.hardware,
                cache=request.cache,
            )
            path = self.folder / source.artifact.file
            plan = build_plan(path, spec, name, options, self.model.source)
            return File(plan.artifact, plan.data, warnings=tuple(plan.warnings))

        return build

    def _file(self, file: str, name: str, graph: Graph) -> File:
        facts: dict[str, Any] = {"opset": self.opset}
        if graph.weights:
            facts["weights"] = file + SUFFIX
        made = graph_file(file, name, "fp32", graph.data, facts)
        size = len(graph.data) + len(graph.weights)
        return File(replace(made.artifact, bytes=size), graph.data, graph.weights)

    def _metadata(self, name: str) -> dict[str, str]:
        model = self.model
        return {
            "tk.task": model.task,
            "tk.part": name,
            "tk.image": orjson.dumps(spec_to_json(model.image)).decode(),
            "tk.crop": orjson.dumps(spec_to_json(model.crop) if model.crop else None).decode(),
            "tk.classes": orjson.dumps(model.classes).decode(),
        }

    def _add(
        self, precision: str, files: list[File], judgement: Judgement, reached: dict[str, Reached]
    ) -> None:
        product = self.product
        product.files += [
            with_facts(file, kept_in_float32=list(reached[file.artifact.part].kept))
            if file.artifact.part in reached and file.artifact.kind == "onnx"
            else file
            for file in files
        ]
        product.judgement += judgement
        if reached:
            product.precisions[precision] = {name: one.report for name, one in reached.items()}
        product.summary += list(_summary(precision, files, judgement, reached, self.model))


def write_file(file: File, folder: Path) -> None:
    """Write a file, and its weights beside it."""
    path = folder / file.artifact.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.data)
    if file.weights:
        (folder / file.artifact.weights).write_bytes(file.weights)


def _nothing_to_lower(precision: str, graphs: dict[str, File]) -> TkError:
    """Say why no part has anything to compute in a precision."""
    types = {
        node.op_type
        for graph in graphs.values()
        for node in onnx.load_model_from_string(graph.data).graph.node
        if node.op_type in WORK
    }
    found = "its products and convolutions all stay in float32 by rule (docs/precision.md)"
    if not types:
        found = "it has neither products nor convolutions"
    elif precision == "bf16" and types <= NO_BF16:
        found = (
            f"all its arithmetic is {', '.join(sorted(types))}, which ONNX knows in bfloat16 from "
            "opset 22 on; tk writes 17 and 18, which engines read"
        )
    others = "; fp16 and int8 can hold convolutions" if "opset" in found else ""
    return TkError(
        f"no part of this model has anything to compute in {precision}",
        found=found,
        fix=f"leave {precision} out of --precision{others}",
    )


def _must_pass_float32(judgement: Judgement) -> None:
    """ONNX Runtime computes what the graph says; another back end may reach the right answer from
    a wrong graph by simplifying it, so where it is installed it decides."""
    judged = judgement.backends()
    if REFERENCE_BACKEND in judged:
        passed = all(measure.passed for measure in judgement.of(REFERENCE_BACKEND))
    else:
        passed = sum_up(judgement, plan=False).passed
    if passed:
        return
    lines = [line for line in summarise(judgement.verdicts) if line.startswith("FAIL")]
    lines += [f"{refusal.backend}: {refusal.why}" for refusal in judgement.refusals]
    if not judged:
        raise CheckFailed(
            "nothing on this machine can run the graph: parity was not proved",
            found="\n    ".join(lines),
            fix="pip install 'tk-vision[cpu]'",
        )
    raise CheckFailed(
        "the graph does not give the answers of its PyTorch model; nothing was kept",
        found="\n    ".join(lines),
        fix="report this model: the graph of a float32 export should be equal",
    )


def _must_pass_plan(plan: File, judgement: Judgement) -> None:
    judged = judgement.backends()
    if judged and all(v.measure.passed for v in judgement.verdicts):
        return
    lines = [line for line in summarise(judgement.verdicts) if line.startswith("FAIL")]
    lines += [f"{refusal.backend}: {refusal.why}" for refusal in judgement.refusals]
    raise CheckFailed(
        f"{plan.artifact.file} does not give the answers of its PyTorch model; nothing was kept",
        found="\n    ".join(lines),
        fix="\n    ".join(plan.warnings) or "try another TensorRT (docs/tensorrt.md)",
    )


def _summary(
    precision: str,
    files: list[File],
    judgement: Judgement,
    reached: dict[str, Reached],
    model: ExportModel,
) -> Iterator[str]:
    size = sum(file.artifact.bytes for file in files) / 1e6
    by_backend: dict[str, list[bool]] = {}
    for verdict in judgement.verdicts:
        by_backend.setdefault(verdict.backend, []).append(verdict.measure.passed)
    good = [name for name, passed in by_backend.items() if all(passed) and name != EMULATED]
    bad = [name for name, passed in by_backend.items() if not all(passed)]
    text = f"{precision}: {size:.1f} MB; passed on {', '.join(good) or 'no back end here'}"
    if EMULATED in by_backend and all(by_backend[EMULATED]):
        text += ", and rounded as an engine would"
    if bad:
        text += f"; FAILED on {', '.join(bad)}: not used there"
    yield text
    for refusal in judgement.refusals:
        yield f"  {refusal.backend} does not run {refusal.file}: {refusal.why}"
    for name in [name for name in model.parts if reached and name not in reached]:
        yield f"  part {name} has nothing to compute in {precision}: it stays in float32"
    for name, one in reached.items():
        if one.search is None:
            continue
        settled = "" if one.search.settled else " (the builds ran out: fewer may do)"
        first = one.search.log[0].judged.what
        yield (
            f"  part {name} failed at first ({first}); {len(one.search.log)} candidates; "
            f"kept in float32{settled}:"
        )
        yield from (f"    {block.name}: {len(block.nodes)} nodes" for block in one.search.kept)
    for warning in (text for file in files for text in file.warnings):
        yield f"  {warning}"
