"""Reach a precision: judge the graph, and if it fails find the least that must stay in float32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from tk.export.gate import Judgement, Reference, Refusal, judge_artifact, judges, summarise
from tk.export.precision.emulated_session import EMULATED, EmulatedSession
from tk.export.precision.make import Maker
from tk.export.precision.search import Judged, Result, SearchFailed, judge, log_json, search
from tk.export.request import Request
from tk.runtime.backends.registry import BACKENDS
from tk.runtime.errors import CheckFailed
from tk.runtime.manifest import Artifact
from tk.runtime.progress import Progress, progress


@dataclass(frozen=True)
class File:
    """One file of a bundle that can be run, in memory.

    Attributes:
        artifact: what the manifest says of it.
        data: its content.
        weights: content of the file beside it, b"" when it has none.
        warnings: of the build.
    """

    artifact: Artifact
    data: bytes
    weights: bytes = b""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A part at some precision, judged.

    Attributes:
        files: the graph, and its plan when one was asked for and the graph passed.
        judgement: figures of all of them.
        judged: their sum.
    """

    files: tuple[File, ...]
    judgement: Judgement
    judged: Judged


@dataclass(frozen=True)
class Reached:
    """A part that reached a precision.

    Attributes:
        candidate: what ships.
        search: how, when the first candidate failed.
        report: for parity.json.
    """

    candidate: Candidate
    search: Result | None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the blocks that had to stay in float32."""
        return tuple(block.name for block in self.search.kept) if self.search else ()


BuildPlan = Callable[[File, frozenset[str]], File]
"""Graph, and nodes that it keeps in float32 by search -> plan."""


def graph_file(name: str, part: str, precision: str, data: bytes, facts: dict[str, Any]) -> File:
    """A graph as it will lie in the bundle."""
    digest = hashlib.sha256(data).hexdigest()
    return File(Artifact(name, digest, len(data), part, "onnx", precision, facts), data)


def sum_up(judgement: Judgement, plan: bool) -> Judged:
    """Say whether a part is fit to ship.

    A graph has to pass as an engine would round it (emulated), and on one back end of this machine,
    unless none can run it as it is written; then the emulation decides alone. A plan has to pass as
    well. Pairs that fail are never used, whatever is said here.

    Args:
        judgement: of a graph and perhaps its plan.
        plan: whether there is a plan.
    """
    emulated = EMULATED in judgement.backends()  # then the file is one of half precision
    groups: list[Judged] = []
    for wanted in ["onnx", "plan"] if plan else ["onnx"]:
        own = [n for n in judgement.backends() if n in BACKENDS and BACKENDS[n].kind == wanted]
        heard = [n for n in own if BACKENDS[n].typed or not emulated]
        if heard:
            groups.append(min((judge(judgement.of(name)) for name in heard), key=_badness))
        elif wanted == "plan" or not emulated:
            groups.append(Judged(False, float("inf"), _nobody(judgement.refusals)))
    if emulated:
        groups.append(judge(judgement.of(EMULATED)))
    worst = max(groups, key=_badness)
    return Judged(all(group.passed for group in groups), worst.worst, worst.what)


def _badness(judged: Judged) -> tuple[bool, float]:
    return not judged.passed, judged.worst


def _nobody(refusals: list[Refusal]) -> str:
    reasons = "; ".join(f"{refusal.backend}: {refusal.why}" for refusal in refusals)
    return f"nothing on this machine runs it ({reasons or 'no back end is installed'})"


class Reach:
    """One part on its way to one precision.

    Args:
        reference: what PyTorch answers.
        maker: of candidates.
        named: model -> the file that it would be.
        plan: builds a plan of a graph; None when none is asked for.
    """

    def __init__(
        self,
        reference: Reference,
        maker: Maker,
        precision: str,
        named: Callable[[onnx.ModelProto], File],
        plan: BuildPlan | None = None,
    ) -> None:
        self.reference, self.maker, self.precision = reference, maker, precision
        self.named, self.plan = named, plan
        self._best: tuple[frozenset[str], Candidate] | None = None

    def run(self, request: Request) -> Reached | None:
        """Judge, search, and give what ships; None when nothing of the part can be lowered.

        Raises:
            CheckFailed: the precision cannot be reached, or not without a search that
                `request.fallback` forbids.
        """
        first = self.maker.build(frozenset())
        if first is None:
            return None
        emulated = self.precision != "int8"
        steps = self.reference.steps * (len(judges("onnx")) + emulated)
        with progress(f"gate {self.reference.name}.{self.precision}", steps) as bar:
            candidate = self._judge(first, frozenset(), bar)
        if candidate.judged.passed:
            return Reached(candidate, None, self._report(None))
        if not request.fallback:
            raise self._failed(candidate, "and --no-fallback forbids to keep blocks in float32")
        return self._search(candidate, first, request)

    def _search(self, first: Candidate, model: onnx.ModelProto, request: Request) -> Reached:
        blocks = self.maker.blocks()
        every = frozenset(name for block in blocks for name in block.nodes)

        def build(keep: frozenset[str]) -> Candidate:
            if not keep:
                return first
            made = self.maker.build(keep)
            if made is None:  # everything in float32 is the float32 graph, which has passed
                return Candidate((), Judgement(), Judged(True, 0.0, "all of it in float32"))
            candidate = self._judge(made, keep)
            if candidate.judged.passed and (self._best is None or len(keep) <= len(self._best[0])):
                self._best = keep, candidate
            return candidate

        try:
            with progress(f"search {self.reference.name}.{self.precision}", request.builds) as bar:

                def judged(candidate: Candidate) -> Judged:
                    word = "passed" if candidate.judged.passed else "failed"
                    bar.advance(note=f"{word}: {candidate.judged.what}")
                    return candidate.judged

                result = search(
                    blocks,
                    build,
                    judged,
                    suspicion=self.maker.suspicion(model, blocks),
                    builds=request.builds,
                )
        except SearchFailed as error:
            tried = log_json(error.log)
            raise self._failed(first, f"even mixed with float32 ({len(tried)} tried)") from error
        if result.nodes >= every or self._best is None:
            count = len(result.log)
            raise self._failed(first, f"and no mixture with float32 passed ({count} tried)")
        keep, candidate = self._best
        if keep != result.nodes:
            candidate = build(result.nodes)
        return Reached(candidate, result, self._report(result))

    def _judge(
        self, model: onnx.ModelProto, keep: frozenset[str], bar: Progress | None = None
    ) -> Candidate:
        graph = self.named(model)
        file = graph.artifact.file
        judgement = judge_artifact(self.reference, graph.artifact, graph.data, bar=bar)
        emulated = self.maker.emulated(model)
        if emulated is not None:
            spec = self.reference.part.spec
            with EmulatedSession(emulated, file, self.precision, spec) as session:
                judgement.verdicts.extend(self.reference.measure(session, file, bar))
        judged, files = sum_up(judgement, plan=False), [graph]
        if self.plan is not None and judged.passed:
            plan = self.plan(graph, keep)
            judgement += judge_artifact(self.reference, plan.artifact, plan.data)
            judged, files = sum_up(judgement, plan=True), [graph, plan]
        return Candidate(tuple(files), judgement, judged)

    def _failed(self, candidate: Candidate, why: str) -> CheckFailed:
        lines = [line for line in summarise(candidate.judgement.verdicts) if line[:4] == "FAIL"]
        refusals = candidate.judgement.refusals
        lines += [f"{refusal.backend} does not run it: {refusal.why}" for refusal in refusals]
        name = self.reference.name
        return CheckFailed(
            f"part {name} does not reach {self.precision}, {why}; nothing was kept",
            found="\n    ".join(lines) or candidate.judged.what,
            fix=f"leave {self.precision} out of --precision"
            + ("; or let it keep blocks in float32" if "--no-fallback" in why else "")
            + ("; or calibrate on more images like those it will see" * (self.precision == "int8")),
        )

    def _report(self, result: Result | None) -> dict[str, Any]:
        return {
            "kept_by_rule": self.maker.reasons,
            "search": None if result is None else result.to_json(),
        }


def with_facts(file: File, **facts: Any) -> File:
    """The file with more facts in its artifact."""
    return replace(file, artifact=replace(file.artifact, facts={**file.artifact.facts, **facts}))
