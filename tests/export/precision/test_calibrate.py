"""Ranges of activations against numpy on the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray

from tk.export.precision import calibrate as module
from tk.export.precision.calibrate import (
    MIN_IMAGES,
    Method,
    calibrate,
    calibrate_channels,
)
from tk.export.precision.calibrate_clip import BINS, LEVELS, Histogram, clip_point
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import CheckFailed, TkError

TEXT = """
<ir_version: 9, opset_import: ["" : {opset}]>
g (float[B,6,5] x) => (float[B,6,5] y) {{
    three = Constant<value_float = 3.0> ()
    a = Mul (x, three)
    b = Relu (a)
    y = Sqrt (b)
}}"""


def graph(opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT.format(opset=opset))


def feeds(count: int = MIN_IMAGES, seed: int = 0) -> list[Arrays]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(1 + i % 3, 6, 5)).astype(np.float32)} for i in range(count)]


def values(fed: list[Arrays], of: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Arrays:
    return {"v": np.concatenate([of(np.asarray(f["x"], np.float32)).ravel() for f in fed])}


@pytest.mark.parametrize("opset", [17, 18])
def test_calibrate__max_is_what_was_seen(opset: int) -> None:
    fed = feeds()
    found = calibrate(graph(opset), fed, ["a", "b", "x"], "max", threads=1)
    everything = values(fed, lambda x: x)["v"]
    low, high = float(everything.min()), float(everything.max())
    assert found["x"] == pytest.approx((low, high), rel=1e-6)
    assert found["a"] == pytest.approx((3 * low, 3 * high), rel=1e-6)
    assert found["b"] == pytest.approx((0, 3 * high), rel=1e-6)
    data = graph(opset).SerializeToString()
    assert calibrate(data, fed, ["a", "b", "x"], "max", threads=1) == found


def test_calibrate__percentile_is_numpys_within_a_bin() -> None:
    fed = feeds()
    found = calibrate(graph(), fed, ["a"], "percentile", percentile=99.0, threads=1)["a"]
    sizes = np.abs(values(fed, lambda x: 3 * x)["v"])
    expected = np.percentile(sizes, 99.0, method="higher")
    assert found[1] == pytest.approx(expected, abs=float(1.01 * sizes.max() / BINS))
    assert found[0] == -found[1]


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_calibrate__clipping_stays_within_what_was_seen(method: Method) -> None:
    fed = feeds()
    exact = calibrate(graph(), fed, ["a", "b"], "max", threads=1)
    found = calibrate(graph(), fed, ["a", "b"], method, threads=1)
    for name, (low, high) in found.items():
        assert exact[name][0] <= low <= high <= exact[name][1]
    assert found["b"][0] == 0


def test_clip_point__mse_is_the_best_of_brute_force() -> None:
    random = np.random.default_rng(0)
    sizes = np.abs(np.append(random.normal(size=100_000), [40.0])).astype(np.float32)
    top = float(sizes.max())
    found = clip_point(Histogram(np.histogram(sizes, BINS, (0, top))[0], top), "mse", 0)

    def error(clip: float) -> float:
        step = clip / (LEVELS - 1)
        return float(((sizes - step * np.minimum(np.rint(sizes / step), LEVELS - 1)) ** 2).sum())

    best = min(error(clip) for clip in np.linspace(0.02 * top, top, 300))
    assert error(found) < 1.1 * best
    assert error(found) < 0.7 * error(top)


def test_clip_point__entropy_drops_a_far_outlier_and_no_more() -> None:
    sizes = np.abs(np.random.default_rng(0).normal(size=200_000))
    counts, _ = np.histogram(np.append(sizes, [40.0]), BINS, (0, 40.0))
    assert 2.4 < clip_point(Histogram(counts, 40.0), "entropy", 0) < 10


def test_clip_point__zeros_of_a_relu_do_not_decide() -> None:
    sizes = np.abs(np.random.default_rng(0).normal(size=200_000))
    counts, _ = np.histogram(sizes, BINS, (0, sizes.max()))
    many = counts.copy()
    many[0] += 10_000_000
    clips = [clip_point(Histogram(c, float(sizes.max())), "entropy", 0) for c in (counts, many)]
    assert clips[0] == clips[1]


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_clip_point__tensor_of_zeros(method: str) -> None:
    assert clip_point(Histogram(np.zeros(BINS, np.int64), 0.0), method, 99.0) == 0


@pytest.mark.parametrize("opset", [17, 18])
def test_calibrate_channels__numpy(opset: int) -> None:
    fed = feeds()
    found = calibrate_channels(graph(opset), fed, ["a"], threads=1)["a"]
    rows = np.concatenate([3 * np.asarray(f["x"], np.float32).reshape(-1, 5) for f in fed])
    np.testing.assert_allclose(found, np.stack([rows.min(0), rows.max(0)]), rtol=1e-6)


def test_calibrate__large_tensors_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 64)
    step = module._step(6 * 5 * 3 * 7)
    assert step == 11  # 10 would meet every third channel of five only
    fed = [{"x": np.tile(np.asarray(f["x"][:1]), (1, 40, 1))} for f in feeds()]
    model = onnx.parser.parse_model(TEXT.format(opset=18).replace("B,6,5", "B,240,5"))
    sampled = calibrate(model, fed, ["a"], "percentile", percentile=90.0, threads=1)["a"]
    sizes = np.abs(values(fed, lambda x: 3 * x)["v"])
    assert sampled[1] == pytest.approx(np.percentile(sizes, 90.0), rel=0.1)


@pytest.mark.parametrize(
    ("count", "method", "tensor", "words"),
    [
        (MIN_IMAGES - 1, "max", "a", "at least 32"),
        (0, "max", "a", "too few readable images"),
        (MIN_IMAGES, "median", "a", "unknown calibration method"),
        (MIN_IMAGES, "max", "nothing", "no value 'nothing'"),
    ],
)
def test_calibrate__bad_request(count: int, method: Method, tensor: str, words: str) -> None:
    with pytest.raises(TkError, match=words):
        calibrate(graph(), feeds(count), [tensor], method, threads=1)


def test_calibrate__percentile_that_makes_no_range() -> None:
    with pytest.raises(TkError, match="percentile"):
        calibrate(graph(), feeds(), ["a"], "percentile", percentile=0.99)


def test_calibrate__value_that_is_not_finite() -> None:
    fed = feeds()
    np.asarray(fed[5]["x"])[0, 0, 0] = np.inf
    with pytest.raises(CheckFailed, match="value a is not finite"):
        calibrate(graph(), fed, ["a"], "max", threads=1)


def test_calibrate__nothing_asked() -> None:
    assert calibrate(graph(), feeds(), [], "max") == {}
