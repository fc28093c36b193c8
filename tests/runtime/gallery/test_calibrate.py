"""Calibration: the allowed rate holds on fresh data, and the stated rate is an honest one."""

from __future__ import annotations

import numpy as np
import pytest
from tests.runtime.gallery.pictures import blobs

from tk.runtime.errors import TkError
from tk.runtime.gallery.calibrate import calibrate
from tk.runtime.gallery.gallery import MODES, SearchMode
from tk.runtime.gallery.prototypes import class_similarity, make_gallery


@pytest.mark.parametrize("mode", MODES)
def test_calibrate__rate_of_false_rejections_holds(mode: SearchMode) -> None:
    # One draw tells little: a threshold found on 300 rows wanders. Means over draws must agree.
    classes, held = tuple("abcd"), np.arange(900) % 3 == 0
    real, stated = [], []
    for seed in range(8):
        rows, labels = blobs(seed, 4, 225)
        thresholds, facts = calibrate(rows, labels, classes, 0.05, 0, held=held, sub_prototypes=3)
        fresh, own = blobs(100 + seed, 4, 1000)
        part = make_gallery(classes, rows[~held], labels[~held], sub_prototypes=3)
        similarity = class_similarity(part, mode, fresh)[np.arange(4000), own]
        real.append((similarity < thresholds[mode]).mean())
        measured = facts["measured"][mode]
        stated.append(measured["false_rejections"])
        assert measured["false_rejections"] == pytest.approx(measured["rejected"] / 300, abs=1e-4)
        assert measured["interval"][0] < stated[-1] < measured["interval"][1]
        assert (measured["of"], facts["held_out"]) == (300, 300)
    assert np.mean(real) == pytest.approx(0.05, abs=0.015)
    assert np.mean(stated) == pytest.approx(float(np.mean(real)), abs=0.015)


def test_calibrate__threshold_is_the_quantile_of_held_out_rows_alone() -> None:
    rows, labels = blobs(3, 3, 40)
    held = np.arange(120) % 4 == 1
    thresholds, facts = calibrate(rows, labels, tuple("abc"), 0.1, 0, held=held)
    means = np.stack([rows[~held & (labels == c)].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    own = (rows[held] * means[labels[held]]).sum(axis=1)
    assert thresholds["centroid"] == pytest.approx(np.quantile(own, 0.1), abs=1e-6)
    assert set(thresholds) == {"centroid", "stack"}
    assert facts["held_out_by_class"] == {"a": 10, "b": 10, "c": 10}


def test_calibrate__measures_what_it_was_not_fitted_on() -> None:
    # On the rows that a threshold comes from, "none" allowed is none found; on others it is not.
    rows, labels = blobs(4, 3, 30)
    _, facts = calibrate(rows, labels, tuple("abc"), 0.0, seed=0)
    assert facts["held_out"] == facts["measured"]["centroid"]["of"] == 30
    assert 0 < facts["measured"]["centroid"]["rejected"] < 15


def test_calibrate__holds_out_a_third_of_each_class() -> None:
    rows, labels = blobs(5, 4, 31)
    some = np.r_[0:62, 62:68, 93:95]  # 31, 31, 6 and 2 references
    classes = tuple("abcd")
    first = calibrate(rows[some], labels[some], classes, 0.02, seed=0, sub_prototypes=2)
    assert first[1]["held_out_by_class"] == {"a": 10, "b": 10, "c": 2, "d": 0}
    again = calibrate(rows[some], labels[some], classes, 0.02, seed=0, sub_prototypes=2)
    other = calibrate(rows[some], labels[some], classes, 0.02, seed=1, sub_prototypes=2)
    assert first == again and first[0] != other[0]


def test_calibrate__too_little_is_said() -> None:
    rows, labels = blobs(6, 3, 2)
    thresholds, facts = calibrate(rows, labels, tuple("abc"), 0.02, seed=0, sub_prototypes=1)
    assert thresholds == {"centroid": -1.0, "stack": -1.0, "sub": -1.0}
    assert facts["method"].startswith("none") and "measured" not in facts
    with pytest.raises(TkError, match="all held out"):
        calibrate(rows, labels, tuple("abc"), 0.02, seed=0, held=labels == 1)
    one, of_one = blobs(7, 1, 4)
    _, facts = calibrate(one, of_one, ("a",), 0.02, seed=0)
    assert facts["held_out"] == 1, "no second half to measure on"
    assert facts["measured"]["stack"] == {
        "false_rejections": None,
        "interval": [0.0, 1.0],
        "rejected": 0,
        "of": 0,
    }
