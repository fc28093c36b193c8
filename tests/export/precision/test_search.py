"""The search: against closed forms and brute force, and on a graph that only it mends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.export.precision.graphs import (
    Arrays,
    check_cast,
    graph,
    matrix,
    run,
    run_low,
    with_weights,
)

from tk.export.precision.blocks import block_errors, make_blocks, scope_of
from tk.export.precision.cast import cast_graph
from tk.export.precision.emulate import emulate
from tk.export.precision.keep import default_keep
from tk.export.precision.ranges import measure_ranges, range_keep
from tk.export.precision.search import Block, Judged, Result, SearchFailed, judge, log_json, search
from tk.runtime.errors import CheckFailed
from tk.runtime.parity.limits import Measure
from tk.runtime.parity.rows import row_cosine


def blocks(count: int) -> list[Block]:
    return [Block(str(i), (f"{i}a", f"{i}b")) for i in range(count)]


def kept_blocks(nodes: frozenset[str]) -> frozenset[int]:
    kept = frozenset(int(name[:-1]) for name in nodes)
    assert nodes == {f"{i}{letter}" for i in kept for letter in "ab"}
    return kept


def solve(
    count: int, fits: Callable[[frozenset[int]], bool], **options: object
) -> tuple[Result, list[int]]:
    """Search with a rule in place of a gate."""

    def passes(kept: frozenset[int]) -> Judged:
        return Judged(fits(kept), 0.5 if fits(kept) else 2.0)

    result = search(blocks(count), kept_blocks, passes, **options)  # type: ignore[arg-type]
    return result, [int(block.name) for block in result.kept]


NEEDED = [
    (16, ()),
    (16, (0,)),
    (16, (15,)),
    (16, (7,)),
    (16, (3, 11)),
    (31, (0, 15, 30)),
    (1, (0,)),
]


@pytest.mark.parametrize("guess", ["none", "right", "wrong"])
@pytest.mark.parametrize(("count", "needed"), NEEDED)
def test_search__finds_what_is_needed(count: int, needed: tuple[int, ...], guess: str) -> None:
    suspicion = {str(i): float((i in needed) == (guess == "right")) for i in range(count)}
    options = {} if guess == "none" else {"suspicion": suspicion}
    result, kept = solve(count, lambda kept: set(needed) <= kept, builds=64, **options)
    assert kept == list(needed) and result.settled
    assert result.nodes == {f"{i}{letter}" for i in needed for letter in "ab"}
    bound = 2 + len(needed) * (2 * math.ceil(math.log2(count + 1)) + 2)
    assert len(result.log) <= bound
    if guess == "right" and len(needed) == 1:
        assert len(result.log) <= 4
    again, _ = solve(count, lambda kept: set(needed) <= kept, builds=64, **options)
    assert again == result


@pytest.mark.parametrize("least", [1, 3, 5])
def test_search__error_that_adds_up(least: int) -> None:
    """Any `least` of eight blocks do: as small as brute force finds."""
    result, kept = solve(8, lambda kept: len(kept) >= least, builds=40)
    assert result.settled and len(kept) == least


def test_search__is_locally_least_whatever_the_rule() -> None:
    """Rules in which blocks help and harm each other, against every smaller set."""
    random = np.random.default_rng(0)
    settled = 0
    for _ in range(30):
        table = {
            frozenset(c): random.random() < 0.5 for n in range(6) for c in combinations(range(5), n)
        }
        table[frozenset(range(5))], table[frozenset()] = True, False
        result, kept = solve(5, lambda kept, table=table: table[kept], builds=40)  # type: ignore[misc]
        assert table[frozenset(kept)]
        if result.settled:
            settled += 1
            assert not any(table[frozenset(kept) - {one}] for one in kept)
    assert settled > 20


@pytest.mark.parametrize("builds", [2, 3, 5, 9])
def test_search__keeps_to_its_builds(builds: int) -> None:
    needed = {5, 11, 17, 23}
    result, kept = solve(32, lambda kept: needed <= kept, builds=builds)
    assert len(result.log) <= builds and needed <= set(kept)
    assert not result.settled


def test_search__each_set_is_built_once() -> None:
    result, _ = solve(12, lambda kept: {2, 9} <= kept, builds=64)
    assert len({trial.kept for trial in result.log}) == len(result.log)


def test_search__nothing_helps() -> None:
    with pytest.raises(SearchFailed, match="every block in float32") as caught:
        solve(8, lambda kept: False)
    assert isinstance(caught.value, CheckFailed) and caught.value.exit_code == 1
    assert [len(trial.kept) for trial in caught.value.log] == [0, 8]


def test_search__log_is_json() -> None:
    def passes(kept: frozenset[int]) -> Judged:
        ok = 2 in kept
        return Judged(ok, 0.1 if ok else math.inf, "y cosine 0.99 (needs 0.9)")

    result = search(blocks(4), kept_blocks, passes)
    text = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert text["kept"] == [{"block": "2", "nodes": ["2a", "2b"]}] and text["settled"]
    first = {"float32": [], "passed": False, "worst": None, "figure": "y cosine 0.99 (needs 0.9)"}
    assert text["tried"][0] == first and text["tried"] == log_json(result.log)


MEASURES = [
    ([("cosine", 0.99995, 0.9999)], True, 0.5),
    ([("cosine", 0.9998, 0.9999)], False, 2.0),
    ([("score_difference", 0.001, 0.002), ("box_iou", 0.999, 0.99)], True, 0.5),
    ([("score_difference", 0.001, 0.002), ("box_iou", 0.97, 0.99)], False, 3.0),
    ([("cosine", math.nan, 0.9999), ("box_iou", 0.5, 0.99)], False, math.inf),
]


@pytest.mark.parametrize(("figures", "passed", "worst"), MEASURES)
def test_judge(figures: list[tuple[str, float, float]], passed: bool, worst: float) -> None:
    judged = judge([Measure("y", *figure) for figure in figures])
    assert judged.passed is passed and judged.worst == pytest.approx(worst)


# On graphs.

LAYER = """n{i} = LayerNormalization ({x}, one, one) a{i} = MatMul (n{i}, w{i}) r{i} = Relu (a{i})
b{i} = MatMul (r{i}, v{i}) h{i} = Add ({x}, b{i})\n"""


def network(layers: int, fragile: int) -> onnx.ModelProto:
    """Residual layers; one of them loses its digits to a large constant and back.

    Its values stay below a sixteenth of 65504 and no pattern gives it away.
    """
    body, weights, x = "", [], "x"
    for i in range(layers):
        layer = LAYER.format(i=i, x=x)
        if i == fragile:
            layer = layer.replace(
                f"r{i} = Relu (a{i})",
                f"up = Add (a{i}, large) t = MatMul (up, unit) down = Sub (t, large) "
                f"r{i} = Relu (down)",
            )
        body, x = body + layer, f"h{i}"
        weights += [matrix(f"w{i}", seed=i), matrix(f"v{i}", seed=100 + i)]
    body += "y = MatMul (" + x + ", w0)"
    arrays = {"one": np.ones(8), "large": np.full(8, 3000.0), "unit": np.eye(8)}
    weights += [numpy_helper.from_array(v.astype(np.float32), n) for n, v in arrays.items()]
    return with_weights(graph(body), *weights)


X: Arrays = {"x": np.random.default_rng(5).normal(size=(16, 8)).astype(np.float32)}


def test_make_blocks__cut_the_graph() -> None:
    model = network(12, fragile=5)
    cut = make_blocks(model)
    assert len(cut) == 12  # each begins with a normalisation
    names = [name for block in cut for name in block.nodes]
    assert names == [node.name for node in model.graph.node]
    few = make_blocks(model, most=4)
    assert len(few) == 4 and [name for block in few for name in block.nodes] == names
    skipped = make_blocks(model, skip=default_keep(model, "fp16"))
    assert not {n for b in skipped for n in b.nodes} & set(default_keep(model, "fp16"))


def test_scopes__of_two_writers() -> None:
    node = onnx.helper.make_node("Relu", ["a"], ["b"], "/net/layers.0/act/Relu")
    assert scope_of(node) == "net.layers.0.act"
    node = onnx.helper.make_node("Relu", ["a"], ["b"], "node_relu")
    assert scope_of(node) == ""
    node.metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'net', 'net.act', 'relu']"
    )
    assert scope_of(node) == "net.act"


@pytest.mark.parametrize("guided", [False, True])
def test_fragile_layer__is_mended_by_search_alone(guided: bool) -> None:
    model = network(12, fragile=7)
    ranges = measure_ranges(model.SerializeToString(), [X], threads=1)
    kept = {**default_keep(model, "fp16"), **range_keep(model, ranges, "fp16")}
    assert not {"n_up", "n_t", "n_down"} & kept.keys()
    cut = make_blocks(model, skip=kept)
    expected = run(model, X)["y"]

    def build(nodes: frozenset[str]) -> onnx.ModelProto:
        return cast_graph(model, "fp16", {*kept, *nodes})

    def passes(cast: onnx.ModelProto) -> Judged:
        value = row_cosine(expected, run_low(cast, X)["y"])
        return judge([Measure("y", "cosine", value, 0.99999)])

    none: frozenset[str] = frozenset()
    assert not passes(build(none)).passed
    suspicion = block_errors(model, emulate(build(none), "fp16"), cut, X, 1) if guided else None
    result = search(cut, build, passes, suspicion=suspicion)
    assert result.settled and len(result.kept) == 1
    assert {"n_up", "n_t", "n_down"} <= result.nodes
    assert len(result.log) <= (4 if guided else 12)
    cast = build(result.nodes)
    check_cast(model, cast)
    assert passes(cast).passed


def test_block_errors__blame_the_first_infinity() -> None:
    model = network(4, fragile=2)
    for weight in model.graph.initializer:
        if weight.name == "v1":
            large = numpy_helper.to_array(weight) * np.float32(5e4)
            weight.CopyFrom(numpy_helper.from_array(large, "v1"))
    cut = make_blocks(model)
    errors = block_errors(model, emulate(cast_graph(model, "fp16", ()), "fp16"), cut, X, threads=1)
    assert [name for name, error in errors.items() if math.isinf(error)] == [cut[1].name]
    assert errors[cut[3].name] == 0.0
