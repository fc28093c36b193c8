"""Step 7: figures of every model, and which differences between them are more than chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.metrics.calibration import expected_calibration_error
from tk.runtime.metrics.classification import accuracy, macro_f1
from tk.runtime.metrics.intervals import student_interval, wilson
from tk.runtime.metrics.paired import mcnemar_exact, paired_bootstrap

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """What models say of the test patches.

    Attributes:
        labels: (N,) int64 true classes.
        files: N names.
        models: name -> (S, N, C) float32, a run per seed.
    """

    labels: Labels
    files: tuple[str, ...]
    models: dict[str, Probabilities]

    def right(self, name: str) -> NDArray[np.bool_]:
        """(S, N) bool, which patches each run answers rightly."""
        found: NDArray[np.bool_] = self.models[name].argmax(axis=2) == self.labels
        return found

    def median(self, name: str) -> int:
        """The seed whose accuracy is the median, the lower one of two."""
        hits = self.right(name).sum(axis=1)
        return int(np.argsort(hits, kind="stable")[(len(hits) - 1) // 2])


@dataclass(frozen=True)
class Figure:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        low, high: bounds of the 95 % interval; None where there is none.
        seeds: the figure of every seed.
        interval: what it is over: `seeds` (Student's t), or `patches` (Wilson) of a single fit.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    interval: str


@dataclass(frozen=True)
class Row:
    """A row of the table; see docs/defects.md for the keys.

    Attributes:
        checkpoint: relative path of the run whose accuracy is the median.
        backbone: relative path of the backbone a head needs; empty for a chain.
        compression: parameters of the teacher for one of this model; None where nothing was
            compressed.
        improvement: points of accuracy more than the model it is compared with.
        reference: name of that model.
        mflops: of a chain, backbone and head; millions of floating-point operations per picture.
    """

    name: str
    title: str
    kind: str
    checkpoint: str
    backbone: str
    parameters: int
    accuracy: Figure
    macro_f1: Figure
    ece: Figure
    compression: float | None
    improvement: float | None
    reference: str = ""
    mflops: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two models on the same test patches.

    Attributes:
        question: what it answers.
        difference, low, high: accuracy of a less that of b in points, and its 95 % interval.
        p_mcnemar: exact test of the two median runs.
        verdict: in words.
    """

    a: str
    b: str
    question: str
    difference: float
    low: float
    high: float
    p_mcnemar: float
    verdict: str


def read_predictions(path: Path) -> Predictions:
    """Read what the step `train` wrote.

    Raises:
        TkError: it is not there.
    """
    if not path.is_file():
        raise TkError(f"{path} does not exist", fix="run the step train")
    models: dict[str, dict[int, Probabilities]] = {}
    with np.load(path) as found:
        for key in found.files:
            name, _, seed = key.partition("/seed")
            if seed:
                models.setdefault(name, {})[int(seed)] = found[key]
        labels, files = found["labels"], tuple(found["files"].tolist())
    stacked = {name: np.stack([runs[k] for k in sorted(runs)]) for name, runs in models.items()}
    return Predictions(labels, files, stacked)


def accuracy_figure(labels: Labels, runs: Probabilities) -> Figure:
    """Accuracy of the runs of a model: (N,) labels, (S, N, C) probabilities."""
    found = figure(labels, runs, lambda true, said: accuracy(true, said.argmax(axis=1)))
    if len(runs) > 1:
        return found
    low, high = wilson(round(found.mean * len(labels)), len(labels))
    return Figure(found.mean, low, high, found.seeds, "patches")


def figure(
    labels: Labels, runs: Probabilities, measure: Callable[[Labels, Probabilities], float]
) -> Figure:
    """Any figure of the runs of a model."""
    values = np.asarray([measure(labels, run) for run in runs])
    seeds = tuple(float(value) for value in values)
    if len(seeds) < 2:
        return Figure(seeds[0], None, None, seeds, "")
    # All figures are shares: what the interval holds beyond 0 and 1 cannot be.
    low, high = (float(np.clip(bound, 0, 1)) for bound in student_interval(values))
    return Figure(float(values.mean()), low, high, seeds, "seeds")


def measure_row(predictions: Predictions, name: str, **facts: Any) -> Row:
    """Measure a model; `facts` are the other fields of `Row`."""
    labels, runs = predictions.labels, predictions.models[name]
    return Row(
        name=name,
        accuracy=accuracy_figure(labels, runs),
        macro_f1=figure(labels, runs, lambda true, said: macro_f1(true, said.argmax(axis=1))),
        ece=figure(labels, runs, expected_calibration_error),
        **facts,
    )


def compare(
    predictions: Predictions, groups: Sequence[str], a: str, b: str, question: str
) -> Comparison:
    """Compare two models over all of their runs.

    Args:
        groups: source image of every test patch.
    """
    first, second = predictions.right(a), predictions.right(b)
    difference, low, high = (100 * value for value in paired_bootstrap(first, second, groups))
    p = mcnemar_exact(
        predictions.right(a)[predictions.median(a)], predictions.right(b)[predictions.median(b)]
    )
    said = verdict(difference, low, high)
    return Comparison(a, b, question, difference, low, high, p, said)


def verdict(difference: float, low: float, high: float) -> str:
    """Say what an interval of a difference in points means."""
    words = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return f"{words} ({difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f})"


def to_json(value: Row | Comparison) -> dict[str, Any]:
    """Plain JSON values."""
    return asdict(value)
