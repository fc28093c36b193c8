"""One model on every engine of this machine, part by part, PyTorch beside them, by turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tk.benchmarks.engines import Engine, ModelsOptions, batch_of, sizes_of
from tk.benchmarks.environment import environment, load_average
from tk.benchmarks.latency import Candidate, Plan, Samples, measure
from tk.benchmarks.models_report import MARKDOWN, write_results
from tk.benchmarks.timing import percentile
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.registry import BACKENDS
from tk.runtime.bundle import PROBE, Bundle, FileChanged
from tk.runtime.choice import Pair, Wish, read_wish
from tk.runtime.errors import TkError
from tk.runtime.files import refuse_existing, refuse_inputs
from tk.runtime.manifest import Part
from tk.runtime.parity.parts import chained_inputs
from tk.runtime.verify import VerifyRow, judge

TURNS = 4
"""Inputs of each size that calls take by turns: the rows of the probe in other places."""


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
    if options.bundle.resolve() in out.resolve().parents:
        raise TkError(f"{out} lies in the bundle", fix="choose a folder outside of it")
    real = _inputs(bundle, options)
    torch_engines, left_out = _torch(bundle, options, wish, real)
    rows, runs = [], {}
    for name, inputs in real.items():
        part, most = bundle.manifest.parts[name], max(options.batches)
        if part.batch_axis and most > part.max_batch:
            left_out.append(f"part {name} takes {part.max_batch} rows at most, not {most}")
        with ExitStack() as stack:
            engines = [
                *torch_engines.get(name, []),
                *_pairs(bundle, name, wish, options, stack, left_out),
            ]
            ready = list(_ready(part, engines, inputs, left_out))
            if not ready:
                bundle.session(name, device=options.device).close()  # knows best why none is proved
                raise TkError(
                    f"nothing that passed the gate runs part {name} here",
                    found="; ".join(left_out),
                    fix="tk doctor",
                )
            found, samples = _time(part, name, ready, inputs, options)
            rows += found
            runs[name] = samples
    parity = _judged(bundle, wish, options, left_out)
    results = {
        "environment": {**facts, "load_average_after": load_average()},
        "options": {**asdict(options), **_named(options)},
        "model": {
            "bundle": bundle.path.resolve().name,
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


def _named(options: ModelsOptions) -> dict[str, str]:
    """Names for paths: where a model lay is nobody else's business."""
    backbone = options.backbone.name if options.backbone else ""
    source = Path(options.source).name if options.source else ""
    return {"bundle": options.bundle.resolve().name, "source": source, "backbone": backbone}


def _inputs(bundle: Bundle, options: ModelsOptions) -> dict[str, Arrays]:
    """Part -> real inputs: of the probe, and what the parts before it make of them."""
    with np.load(bundle.path / PROBE, allow_pickle=False) as archive:
        given = {n.removeprefix("input/"): archive[n] for n in archive.files if "input/" in n}
    inputs: dict[str, Arrays] = {}
    *before, last = bundle.manifest.parts
    for name in before:
        part = bundle.manifest.parts[name]
        inputs[name] = chained_inputs(part, given)
        # A probe can have more rows than a plan takes.
        rows = min(part.max_batch, max(map(len, inputs[name].values())))
        with bundle.session(name, device=options.device, threads=options.threads) as session:
            given |= session.run(batch_of(part, inputs[name], rows, 0))
    inputs[last] = chained_inputs(bundle.manifest.parts[last], given)
    return inputs


def _pairs(
    bundle: Bundle,
    part: str,
    wish: Wish,
    options: ModelsOptions,
    stack: ExitStack,
    left_out: list[str],
) -> Iterator[Engine]:
    """Every pair of a part that passed and runs here, opened; one that does not open is told."""
    names: set[str] = set()
    for pair in bundle.pairs(part):
        if not pair.passed or pair.refusal(wish.device) or not wish.allows(pair):
            continue
        name = f"{pair.artifact.precision} on {pair.backend.name}"
        if name in names:  # two plans that fit: for this GPU, and for all of its kind
            name += f" ({pair.artifact.file})"
        names.add(name)
        began = time.perf_counter()
        try:
            session = bundle.open_pair(pair, device=wish.device, threads=options.threads)
        except FileChanged:
            raise
        except TkError as error:
            left_out.append(f"part {part}, {name}: {error.what}")
            continue
        stack.enter_context(session)
        yield _engine(name, pair, session, time.perf_counter() - began)


def _engine(name: str, pair: Pair, session: Session, opened: float) -> Engine:
    artifact = pair.artifact
    return Engine(
        name,
        artifact.precision,
        session.run,
        getattr(session, "gpu_seconds", None),
        bytes=artifact.bytes,
        opened=opened,
        facts=artifact.facts,
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
    sizes = sizes_of(part, options)
    timed: dict[int, dict[str, Samples]] = {}
    gpu: dict[int, dict[str, list[float]]] = {}
    for size in sizes:
        print(
            f"time {name}, batch {size}: {', '.join(engine.name for engine in engines)}",
            file=sys.stderr,
        )
        turns = [batch_of(part, inputs, size, turn) for turn in range(TURNS)]
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
            "first_call": engine.first_call,
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


def _ready(
    part: Part, engines: list[Engine], inputs: Arrays, left_out: list[str]
) -> Iterator[Engine]:
    """Engines after their first call of all; one that fails is told and left out."""
    for engine in engines:
        began = time.perf_counter()
        try:
            engine.call(batch_of(part, inputs, 1, 0))
        except TkError as error:
            left_out.append(f"{engine.name}: {error.what}")
            continue
        engine.first_call = time.perf_counter() - began
        yield engine


def _call(engine: Engine, turns: list[Arrays]) -> Candidate:
    places = count()

    def call() -> object:
        return engine.call(turns[next(places) % len(turns)])

    return call


def _judged(
    bundle: Bundle, wish: Wish, options: ModelsOptions, left_out: list[str]
) -> list[dict[str, Any]]:
    """Parity of whole models here; if it fails, the times that were waited for are kept."""
    try:
        return [_parity(row) for row in judge(bundle, wish, options.threads)]
    except FileChanged:
        raise
    except TkError as error:
        left_out.append(f"answers were not compared again: {error.what}")
        return []


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
