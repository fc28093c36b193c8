"""Plans for this machine from the graphs that a bundle holds: no PyTorch, no checkpoint.

A bundle travels, a plan does not. What PyTorch answers to real inputs lies in the bundle's probe,
so a plan is judged by it: as it stands, and with its rows repeated to the largest batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path

from tk.export.tensorrt.choose import asked_of, graphs_of, source_of
from tk.export.tensorrt.flags import can_be_strong
from tk.export.tensorrt.options import BuildOptions
from tk.runtime.backends.tensorrt import library
from tk.runtime.bundle import MANIFEST, Bundle
from tk.runtime.choice import read_wish
from tk.runtime.errors import CheckFailed, EnvironmentLacks
from tk.runtime.files import locked, write_bytes, write_json
from tk.runtime.manifest import Artifact
from tk.runtime.verify import VerifyRow, judge, record

UNPROVED = ".unproved"
"""After the name of a plan until it has passed."""


@dataclass(frozen=True)
class Added:
    """What became of a bundle.

    Attributes:
        files: plans that were kept.
        rows: their figures.
    """

    files: list[str]
    rows: list[VerifyRow]


def add_plans(path: Path, precisions: Sequence[str], options: BuildOptions) -> Added:
    """Build plans for the GPU of this machine, prove them, and add them to their bundle.

    Plans of the same name (this TensorRT, this kind of GPU) are replaced once the new ones have
    passed; others stay. What fails leaves the bundle as it was.

    Args:
        path: the bundle.
        precisions: of the plans; empty takes all that the bundle has graphs of. A part without a
            graph of one of them gets a plan in float32.
        options: how to build; precision, batch and keep-list are set by part.

    Raises:
        TkError: not a bundle, or one without such graphs.
        EnvironmentLacks: no GPU, no TensorRT, no package onnx, too little memory.
        CheckFailed: a plan does not give the answers of the PyTorch model; nothing was kept.
    """
    bundle = Bundle.open(path)
    asked = asked_of(bundle, precisions)
    _must_build()
    plans = [
        _build(bundle, graph, options, precision) for precision, graph in graphs_of(bundle, asked)
    ]
    with locked(path.with_name(f"{path.name}.plans")):
        return _keep(path, plans, asked)


def _must_build() -> None:
    if lack := library.missing():
        raise EnvironmentLacks("plans are built on the machine that runs them", found=lack)
    if util.find_spec("onnx") is None:
        raise EnvironmentLacks("building a plan needs the package onnx", fix="pip install onnx")


def _build(
    bundle: Bundle, graph: Artifact, options: BuildOptions, precision: str
) -> tuple[bytes, Artifact]:
    from tk.export.tensorrt.build import build_plan

    part = bundle.manifest.parts[graph.part]
    strong = can_be_strong(library.load())
    source, keep = source_of(bundle, graph, precision, strong=strong)
    own = replace(
        options,
        precision=precision,
        max_batch=part.max_batch,
        keep=keep,
        opt_batch=min(options.opt_batch, part.max_batch),
    )
    plan = build_plan(bundle.path / source, part, graph.part, own, bundle.manifest.source)
    return plan.data, plan.artifact


def _keep(path: Path, plans: Sequence[tuple[bytes, Artifact]], asked: Sequence[str]) -> Added:
    """Judge plans under other names, so that older ones stay until the new ones have passed."""
    named = {f"{artifact.file}{UNPROVED}": artifact for _, artifact in plans}
    try:
        for name, (data, _) in zip(named, plans, strict=True):
            write_bytes(path / name, data)
        rows = _judged(path, named, asked)
        _must_pass(path, rows)
        return _replace(path, named, rows)
    finally:
        for name in named:
            (path / name).unlink(missing_ok=True)


def _judged(path: Path, named: Mapping[str, Artifact], asked: Sequence[str]) -> list[VerifyRow]:
    """Figures of the new plans, as if the older ones of their names were gone."""
    bundle = Bundle.open(path)
    taken = {artifact.file for artifact in named.values()}
    rest = [artifact for artifact in bundle.manifest.artifacts if artifact.file not in taken]
    new = [replace(artifact, file=name) for name, artifact in named.items()]
    candidate = Bundle(path, replace(bundle.manifest, artifacts=(*rest, *new)), bundle.verdicts)
    wish = read_wish("cuda", "auto", "tensorrt")
    return [row for row in judge(candidate, wish) if row.precision in asked]


def _replace(path: Path, named: Mapping[str, Artifact], rows: Sequence[VerifyRow]) -> Added:
    """Put proved plans in the place of older ones. The manifest names none of both in between."""
    added = list(named.values())
    _drop(path, {artifact.file for artifact in added})
    bundle = Bundle.open(path)
    own = {name: artifact.file for name, artifact in named.items()}
    renamed = [
        replace(row, files={part: own.get(file, file) for part, file in row.files.items()})
        for row in rows
    ]
    try:
        for name, file in own.items():
            os.replace(path / name, path / file)
        record(bundle, renamed, added)
    except BaseException:  # a file that no manifest names would stay for ever
        for artifact in added:
            (path / artifact.file).unlink(missing_ok=True)
        raise
    return Added([artifact.file for artifact in added], renamed)


def _must_pass(path: Path, rows: Sequence[VerifyRow]) -> None:
    wrong = [row for row in rows if row.skipped or not row.passed or not row.measures]
    if wrong:
        raise CheckFailed(
            f"{path.name}: a plan does not give the answers of the PyTorch model; nothing was kept",
            found="\n    ".join(_row_text(row) for row in wrong),
            fix="build from another --precision; float32 is nearest",
        )


def _row_text(row: VerifyRow) -> str:
    figures = ", ".join(
        f"{part}/{measure.output} {measure}"
        for part, measures in row.measures.items()
        for measure in measures
    )
    return f"{row.precision}: {row.skipped or figures or 'the probe holds no answers'}"


def _drop(path: Path, files: set[str]) -> None:
    """Take plans of the same name out of the manifest, so that new ones can take their place."""
    with locked(path):
        bundle = Bundle.open(path)
        rest = [a for a in bundle.manifest.artifacts if a.file not in files]
        if len(rest) == len(bundle.manifest.artifacts):
            return
        manifest = bundle.manifest.with_artifacts(rest, bundle.manifest.files)
        write_json(path / MANIFEST, manifest.to_json())
