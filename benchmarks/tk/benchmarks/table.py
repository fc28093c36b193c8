"""`tk bench table`: how long the models of a distillation run take, heads alone and from pixels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.benchmarks.environment import environment, load_average
from tk.benchmarks.latency import Candidate, Plan, Samples, measure
from tk.benchmarks.table_bundles import Model, describe_chains, export_chain, export_head
from tk.benchmarks.table_report import write_report
from tk.runtime.backends.base import Session
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.heads.classifier import Classifier
from tk.runtime.images import read_image
from tk.runtime.preprocess import Image
from tk.train.distill.extract import read_features
from tk.train.distill.layout import INFO
from tk.train.distill.results import Figure, Row
from tk.train.distill.split import Items, read_split

Measured = dict[str, Samples]
"""Row -> its samples."""

BATCHES = (1, 32)
CROPS = 64
"""Test patches that are held decoded; the calls go through them."""

ENGINE = {"precision": "fp32", "backend": "onnxruntime", "device": "cpu"}
STAGES = {
    "heads": "from a feature in memory to probabilities: the checks of names, types and shapes of "
    "tk's session, then ONNX Runtime",
    "pixels": "from a decoded uint8 crop to probabilities: resizing or letterboxing to the canvas, "
    "then one graph with normalisation, backbone and head; decoding the file is not in it",
    "decode": "reading and decoding the file of one crop, which comes before",
}


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How to measure.

    Attributes:
        threads: of the engine; 0 for all cores.
        samples: timed rounds of each of the four measurements.
        seconds: after which no further round of a measurement begins.
    """

    threads: int = 1
    samples: int = 300
    seconds: float = 60.0


def bench_table(run: Path, options: TableOptions) -> dict[str, Any]:
    """Measure, and write latency.json and both tables into the run.

    Args:
        run: folder of a finished `tk train distill`.
        options: how.

    Returns:
        What latency.json holds.

    Raises:
        TkError: not such a folder, not finished, or files are missing.
    """
    facts = environment(options.threads)
    rows, items = read_rows(run), read_split(run / INFO)
    heads = [row for row in rows if row.kind == "head"]
    chains = describe_chains(run, rows)
    measured = [model for model in chains if model.same_as == model.row.name]
    files = _crop_files(items)
    largest = max(BATCHES)
    head_bundles = {row.name: export_head(run, row, largest) for row in heads}
    chain_bundles = {m.row.name: export_chain(run, m.row, items.root, largest) for m in measured}
    crops = [read_image(file) for file in files]
    before = load_average()
    samples = {
        "heads": _time_heads(run, heads, items, head_bundles, options),
        "pixels": _time_chains(chain_bundles, crops, options),
        "decode": {"1": measure({"decode": _decoding(files)}, _plan(options))},
    }
    results = {
        "environment": {**facts, "load_average": before, "load_average_after": load_average()},
        "options": asdict(options),
        "dataset": read_json(run / "results.json").get("dataset", ""),
        "stages": STAGES,
        "crops": {
            "held": len(crops),
            "height": median(crop.shape[0] for crop in crops),
            "width": median(crop.shape[1] for crop in crops),
        },
        "chains": {m.row.name: _chain_facts(m) for m in chains},
        "figures": {
            kind: {
                batch: {name: one.figures() for name, one in found.items()}
                for batch, found in by_batch.items()
            }
            for kind, by_batch in samples.items()
        },
        "runs": {
            kind: {
                batch: {name: {"wall": one.wall, "cpu": one.cpu} for name, one in found.items()}
                for batch, found in by_batch.items()
            }
            for kind, by_batch in samples.items()
        },
    }
    write_report(run, rows, results)
    return results


def read_rows(run: Path) -> list[Row]:
    """Rows of results.json.

    Raises:
        TkError: the run has none yet, or they are of another version.
    """
    path = run / "results.json"
    if not path.is_file():
        raise TkError(
            f"{run} holds no results.json",
            expected="a finished run of tk train distill",
            fix=f"tk train distill --data DATA --out {run}",
        )
    content = read_json(path)
    try:
        return [
            Row(
                **{
                    **row,
                    **{key: _figure(row[key]) for key in ("accuracy", "macro_f1", "ece")},
                }
            )
            for row in content["rows"]
        ]
    except (KeyError, TypeError) as error:
        raise TkError(
            f"{path} is not what tk train distill writes",
            found=f"{type(error).__name__}: {error}",
            fix="--step compare --force writes it again",
        ) from None


def _figure(value: dict[str, Any]) -> Figure:
    return Figure(**{**value, "seeds": tuple(value["seeds"])})


def _chain_facts(model: Model) -> dict[str, Any]:
    return {
        "network": model.network,
        "parameters": model.parameters,
        "mflops": model.mflops,
        "same_as": model.same_as,
    }


def _crop_files(items: Items) -> list[Path]:
    """Files of test patches, spread over all of them."""
    test = items.rows("test")
    chosen = test[np.unique(np.linspace(0, len(test) - 1, CROPS).round().astype(int))]
    return [items.root / items.files[row] for row in chosen]


def _measured(what: str, batch: int, candidates: dict[str, Candidate], plan: Plan) -> Measured:
    """Say what is timed, for it may take a minute or more, and time it."""
    names = ", ".join(candidates)
    print(f"time {what}, batch {batch}, up to {plan.seconds:g} s: {names}", file=sys.stderr)
    return measure(candidates, plan)


def _plan(options: TableOptions) -> Plan:
    return Plan(samples=options.samples, seconds=options.seconds)


def _time_heads(
    run: Path,
    heads: Sequence[Row],
    items: Items,
    bundles: dict[str, Bundle],
    options: TableOptions,
) -> dict[str, Measured]:
    """Batch -> row -> samples; the features are those of the row's own backbone."""
    sessions = {
        name: bundle.session(threads=options.threads, **ENGINE) for name, bundle in bundles.items()
    }
    features: dict[str, NDArray[np.float32]] = {}
    for row in heads:
        name = Path(row.backbone).stem.replace("backbone", "features")
        if row.backbone not in features:
            values = read_features(run, name, len(items.files)).values
            features[row.backbone] = values[items.rows("test")]
    plan = replace(_plan(options), window=50)  # microseconds each
    try:
        return {
            str(batch): _measured(
                "heads",
                batch,
                {
                    row.name: _from_feature(sessions[row.name], features[row.backbone], batch)
                    for row in heads
                },
                plan,
            )
            for batch in BATCHES
        }
    finally:
        for session in sessions.values():
            session.close()


def _time_chains(
    bundles: dict[str, Bundle], crops: Sequence[Image], options: TableOptions
) -> dict[str, Measured]:
    """Batch -> row -> samples."""
    models = {
        name: Classifier(bundle, threads=options.threads, **ENGINE)
        for name, bundle in bundles.items()
    }
    try:
        return {
            str(batch): _measured(
                "from pixels",
                batch,
                {name: _from_pixels(model, crops, batch) for name, model in models.items()},
                _plan(options),
            )
            for batch in BATCHES
        }
    finally:
        for model in models.values():
            model.session.close()


def _from_feature(session: Session, rows: NDArray[np.float32], batch: int) -> Candidate:
    """One call with the next rows; they are cut beforehand."""
    cut = [
        np.ascontiguousarray(rows[(np.arange(batch) + start) % len(rows)])
        for start in range(0, max(len(rows), batch), batch)
    ]
    turn = count()
    return lambda: session.run({"feature": cut[next(turn) % len(cut)]})


def _from_pixels(model: Classifier, crops: Sequence[Image], batch: int) -> Candidate:
    turn = count(step=batch)

    def call() -> object:
        start = next(turn)
        return model.classify([crops[(start + i) % len(crops)] for i in range(batch)])

    return call


def _decoding(files: Sequence[Path]) -> Candidate:
    turn = count()
    return lambda: read_image(files[next(turn) % len(files)])
