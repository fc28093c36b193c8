from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tk.train.run.sampling import batches, epoch_of, epoch_permutation, sample_rng
from tk.train.run.schedule import cosine, warmup_cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (7, 0.5 + 0.5 * math.cos(math.pi / 4) * 1.0),
        (16, 0.0),
    ],
)
def test_warmup_cosine__closed_form(step: int, expected: float) -> None:
    assert warmup_cosine(step, 16, 4, 1.0) == pytest.approx(expected, abs=1e-12)


def test_cosine__ends_and_middle() -> None:
    assert [cosine(step, 10, 0.04, 0.4) for step in (0, 5, 10, 99)] == pytest.approx(
        [0.04, 0.22, 0.4, 0.4]
    )
    assert warmup_cosine(5, 5, 5, 1.0) == 0.0


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (3, 8), (8, 8), (1, 1)])
def test_batches__start_anywhere(size: int, batch: int) -> None:
    def order(epoch: int) -> NDArray[np.int64]:
        return epoch_permutation(7, epoch, size)

    whole = list(batches(order, batch, 0, 9))
    assert all(len(places) == batch for places in whole)
    for start in range(9):
        assert list(batches(order, batch, start, 9)) == whole[start:]
        assert whole[start][0][0] == epoch_of(start, batch, size)
    counts = Counter(place for places in whole for place in places)
    assert set(counts.values()) == {1}
    full_epochs = 9 * batch // size
    assert sum(epoch < full_epochs for epoch, _ in counts) == full_epochs * size


def test_sample_rng__depends_on_all_three() -> None:
    draws = {sample_rng(s, e, i).random() for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    assert len(draws) == 8 and sample_rng(1, 2, 3).random() == sample_rng(1, 2, 3).random()
    assert list(epoch_permutation(0, 0, 9)) != list(epoch_permutation(0, 1, 9))
