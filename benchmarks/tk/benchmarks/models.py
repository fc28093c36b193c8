"""One model on every engine of this machine, part by part, PyTorch beside them, by turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tk.benchmarks.environment import environment, load_average
from tk.benchmarks.latency import Candidate, Plan, Samples, measure
from tk.benchmarks.models_report import MARKDOWN, write_results
from tk.benchmarks.timing import percentile
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.registry import BACKENDS
from tk.runtime.bundle import PROBE, Bundle
from tk.runtime.choice import Pair, Wish, read_wish
from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing, refuse_inputs
from tk.runtime.manifest import Part
from tk.runtime.parity.parts import chained_inputs
from tk.runtime.verify import VerifyRow, judge

TURNS = 4
"""Inputs of each size that calls take by turns: the rows of the probe in other places."""


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """What to measure.

    Attributes:
        bundle: proved graphs and plans of one model.
        source: what the bundle was exported from, for PyTorch; "" leaves PyTorch out.
        backbone: of a head, as for `tk export`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, for engines and PyTorch alike.
        batches: sizes to time, rows of the free axis; a part takes those up to its largest.
        repeats: timed calls of each engine, part and batch.
        threads: on the CPU; 0 for all cores.
        compile: time `torch.compile` as well.
    """

    bundle: Path
    source: str = ""
    backbone: Path | None = None
    device: str = "auto"
    batches: tuple[int, ...] = (1, 4)
    repeats: int = 50
    threads: int = 0
    compile: bool = True


@dataclass
class Engine:
    """One way to run a part.

    Attributes:
        name: `fp16 on tensorrt`, `PyTorch, compiled`.
        precision: of the arithmetic.
        call: inputs -> outputs, from arrays of the host to arrays of the host.
        gpu_seconds: (inputs, repeats) -> seconds of each run by CUDA events, without copies; None
            where the engine tells no such times.
        bytes: of its file; 0 for PyTorch.
        opened: seconds that loading took.
        facts: of the artifact.
    """

    name: str
    precision: str
    call: Callable[[Arrays], object]
    gpu_seconds: Callable[[Arrays, int], list[float]] | None = None
    bytes: int = 0
    opened: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def bench_models(out: Path, options: ModelsOptions, *, overwrite: bool = False) -> dict[str, Any]:
    """Time all parts of a bundle on everything that passed the gate and runs here.

    A call goes from arrays in the host's memory to arrays there: copies to a GPU are in it.
    Decoding and letterboxing of pictures are not. Inputs are the real ones that lie in the bundle.

    Raises:
        TkError: no such bundle, nothing of it runs here, or a source of another model.
    """
    source = Path(options.source) if options.source and Path(options.source).exists() else None
    refuse_inputs(out, {"--bundle": options.bundle, "--source": source})
    refuse_existing(out, overwrite=overwrite, own=MARKDOWN)
    facts = environment(options.threads)
    bundle, wish = Bundle.open(options.bundle), read_wish(options.device, "auto", "auto")
    real = _inputs(bundle, options)
    torch_engines, left_out = _torch(bundle, options, wish, real)
    rows, runs = [], {}
    for name, inputs in real.items():
        with ExitStack() as stack:
            engines = [*torch_engines.get(name, []), *_pairs(bundle, name, wish, options, stack)]
            if not engines:
                raise TkError(
                    f"nothing that passed the gate runs part {name} here", fix="tk doctor"
                )
            found, samples = _time(bundle.manifest.parts[name], name, engines, inputs, options)
            rows += found
            runs[name] = samples
    parity = [_parity(row) for row in judge(bundle, wish, options.threads)]
    results = {
        "environment": {**facts, "load_average_after": load_average()},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "model": {
            "task": bundle.manifest.task,
            "id": bundle.manifest.settings.get("model_id"),
            "parameters": bundle.manifest.source.get("parameters"),
        },
        "rows": rows,
        "parity": parity,
        "left_out": left_out,
        "runs": runs,
    }
    write_results(out, results, overwrite=overwrite)
    return results


def _inputs(bundle: Bundle, options: ModelsOptions) -> dict[str, Arrays]:
    """Part -> real inputs: of the probe, and what the parts before it make of them."""
    with np.load(bundle.path / PROBE, allow_pickle=False) as archive:
        given = {n.removeprefix("input/"): archive[n] for n in archive.files if "input/" in n}
    inputs: dict[str, Arrays] = {}
    for name, part in bundle.manifest.parts.items():
        inputs[name] = chained_inputs(part, given)
        with bundle.session(name, device=options.device, threads=options.threads) as session:
            given |= session.run(inputs[name])
    return inputs


def _pairs(
    bundle: Bundle, part: str, wish: Wish, options: ModelsOptions, stack: ExitStack
) -> Iterator[Engine]:
    """Every pair of a part that passed and runs here, opened."""
    for pair in bundle.pairs(part):
        if not pair.passed or pair.refusal(wish.device) or not wish.allows(pair):
            continue
        began = time.perf_counter()
        session = stack.enter_context(
            bundle.open_pair(pair, device=wish.device, threads=options.threads)
        )
        yield _engine(pair, session, time.perf_counter() - began)


def _engine(pair: Pair, session: Session, opened: float) -> Engine:
    artifact = pair.artifact
    return Engine(
        f"{artifact.precision} on {pair.backend.name}",
        artifact.precision,
        session.run,
        getattr(session, "gpu_seconds", None),
        artifact.bytes,
        opened,
        artifact.facts,
    )


def _torch(
    bundle: Bundle, options: ModelsOptions, wish: Wish, inputs: Mapping[str, Arrays]
) -> tuple[dict[str, list[Engine]], list[str]]:
    """Part -> PyTorch's ways to run it, and what could not be compiled, in words."""
    if not options.source:
        return {}, []
    from tk.benchmarks.models_torch import torch_engines

    return torch_engines(bundle, options, wish, inputs)


def _time(
    part: Part, name: str, engines: list[Engine], inputs: Arrays, options: ModelsOptions
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one part, and its raw samples."""
    sizes = [size for size in options.batches if size <= part.max_batch] or [1]
    if not part.batch_axis:
        sizes = [1]
    first = {engine.name: _first(engine, part, inputs) for engine in engines}
    timed: dict[int, dict[str, Samples]] = {}
    gpu: dict[int, dict[str, list[float]]] = {}
    for size in sizes:
        print(f"time {name}, batch {size}: {', '.join(first)}", file=sys.stderr)
        turns = [_batch(part, inputs, size, turn) for turn in range(TURNS)]
        plan = Plan(samples=options.repeats, least=options.repeats)
        timed[size] = measure({e.name: _call(e, turns) for e in engines}, plan)
        gpu[size] = {
            e.name: e.gpu_seconds(turns[0], options.repeats)
            for e in engines
            if e.gpu_seconds is not None
        }
    rows = [
        {
            "part": name,
            "engine": engine.name,
            "precision": engine.precision,
            "bytes": engine.bytes,
            "found": engine.facts.get("found"),
            "opened": engine.opened,
            "first_call": first[engine.name],
            "latency": {str(size): timed[size][engine.name].figures() for size in sizes},
            "gpu": {
                str(size): {f"p{p}": percentile(gpu[size][engine.name], p) for p in (50, 90, 99)}
                for size in sizes
                if engine.name in gpu[size]
            },
        }
        for engine in engines
    ]
    samples = {
        str(size): {
            key: {"wall": calls.wall, "cpu": calls.cpu, "gpu": gpu[size].get(key, [])}
            for key, calls in timed[size].items()
        }
        for size in sizes
    }
    return rows, samples


def _first(engine: Engine, part: Part, inputs: Arrays) -> float:
    """Seconds of the first call of all."""
    began = time.perf_counter()
    engine.call(_batch(part, inputs, 1, 0))
    return time.perf_counter() - began


def _call(engine: Engine, turns: list[Arrays]) -> Candidate:
    places = count()

    def call() -> object:
        return engine.call(turns[next(places) % len(turns)])

    return call


def _batch(part: Part, inputs: Arrays, size: int, turn: int) -> Arrays:
    """`size` rows of every input whose first axis is the batch, begun at another row each turn."""
    return {
        spec.name: inputs[spec.name][(np.arange(size) + turn) % len(inputs[spec.name])]
        if part.batch_axis and spec.shape[:1] == (part.batch_axis,)
        else inputs[spec.name]
        for spec in part.inputs
    }


def _parity(row: VerifyRow) -> dict[str, Any]:
    """What `tk verify` says of a pair, here and now, against PyTorch's answers in the bundle."""
    return {
        "engine": f"{row.precision} on {row.backend}",
        "device": BACKENDS[row.backend].device,
        "skipped": row.skipped,
        "passed": row.passed and not row.skipped,
        "measures": {
            part: [f"{measure.output} {measure}" for measure in measures]
            for part, measures in row.measures.items()
        },
    }
