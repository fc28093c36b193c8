"""Which (artifact, back end) runs: only what passed, the best first, and always with a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_bundles

from tk.runtime.backends.registry import BACKENDS, PRECISIONS, PREFERENCE, Backend
from tk.runtime.bundle import Bundle
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.manifest import Artifact

ALL = {
    **{f"model.{precision}.onnx": (precision, "onnx") for precision in PRECISIONS},
    **{f"plans/model.{p}.plan": (p, "plan") for p in PRECISIONS},
}
READ = Bundle._read


class Opened:
    """What a pretended back end gives for a session."""

    def __init__(self, backend: str, name: str, device: int) -> None:
        self.backend, self.name, self.device, self.why = backend, name, device, ""


class Module:
    """A pretended back end: `lacks` and `refuses` are its answers, `fails` its errors."""

    def __init__(self, name: str, lacks: str, refuses: Mapping[str, str]) -> None:
        self.name, self.lacks, self.refuses = name, lacks, refuses
        self.fails: dict[str, TkError] = {}

    def missing(self) -> str:
        return self.lacks

    def refusal(self, facts: Mapping[str, Any], device: int = 0) -> str:
        return self.lacks or self.refuses.get(facts.get("sm", ""), "")

    def open_session(
        self, data: bytes, name: str, precision: str, part: Any, threads: int, weights: Any,
        *, facts: Any, device: int,
    ) -> Opened:  # fmt: skip
        if precision in self.fails:
            raise self.fails[precision]
        return Opened(self.name, name, device)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Module]:
    """Back ends by name, all of them ready; a test takes some away."""
    modules = {name: Module(name, "", {}) for name in BACKENDS}
    monkeypatch.setattr(Backend, "load", lambda backend: modules[backend.name])
    monkeypatch.setattr(Bundle, "_read", lambda bundle, file, sha256: b"")
    return modules


@pytest.fixture
def bundle(tiny_world: Path) -> Bundle:
    """An embedder with a file of every precision and kind, all of which passed everywhere."""
    opened = Bundle.open(tiny_world / "bundles" / "embedder")
    artifacts = tuple(
        Artifact(file, "", 0, "model", kind, precision, {"sm": "sm90"})
        for file, (precision, kind) in ALL.items()
    )
    manifest = replace(opened.manifest, artifacts=artifacts)
    return Bundle(opened.path, manifest, {(f, b): True for f in ALL for b in BACKENDS})


def took(bundle: Bundle, **wish: str) -> tuple[str, str]:
    session: Any = bundle.session(**wish)  # type: ignore[arg-type]
    return session.backend, re.sub(r".*model\.(\w+)\..*", r"\1", session.name)


def test_preference__every_pair_once() -> None:
    expected = {(name, precision) for name in BACKENDS for precision in PRECISIONS}
    assert len(PREFERENCE) == len(set(PREFERENCE)) and set(PREFERENCE) == expected


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ((), ("tensorrt", "fp16")),
        (("tensorrt",), ("onnxruntime-cuda", "fp16")),
        (("tensorrt", "onnxruntime-cuda"), ("openvino-cpu", "int8")),
        (("tensorrt", "onnxruntime-cuda", "openvino-cpu"), ("onnxruntime-cpu", "int8")),
    ],
)
def test_session__auto_takes_the_best_that_runs_here(
    bundle: Bundle, machine: dict[str, Module], gone: tuple[str, ...], expected: tuple[str, str]
) -> None:
    for name in gone:
        machine[name].lacks = f"no {name}"
    assert took(bundle) == expected
    session = bundle.session()
    assert "\n" not in session.why and "that passed the gate" in session.why
    for name in gone:
        assert f"no {name}" in session.why


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"device": "cpu"}, ("openvino-cpu", "int8")),
        ({"device": "cpu", "precision": "fp32"}, ("onnxruntime-cpu", "fp32")),
        ({"backend": "onnxruntime"}, ("onnxruntime-cuda", "fp16")),
        ({"backend": "onnxruntime-cpu"}, ("onnxruntime-cpu", "int8")),
        ({"backend": "onnxruntime", "device": "cpu"}, ("onnxruntime-cpu", "int8")),
        ({"backend": "openvino", "precision": "fp16"}, ("openvino-cpu", "fp16")),
        ({"device": "cuda", "precision": "fp32"}, ("tensorrt", "fp32")),
        ({"device": "cuda:1", "backend": "tensorrt"}, ("tensorrt", "fp16")),
    ],
)
def test_session__what_was_asked_for(
    bundle: Bundle, machine: dict[str, Module], wish: dict[str, str], expected: tuple[str, str]
) -> None:
    assert took(bundle, **wish) == expected
    session: Any = bundle.session(**wish)  # type: ignore[arg-type]
    assert session.device == (1 if wish.get("device") == "cuda:1" else 0)
    for name, value in wish.items():
        assert f"{name.replace('backend', 'back end')} {value}" in session.why


def test_session__the_same_graph_passes_on_one_back_end_only(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    bundle.verdicts[("model.int8.onnx", "openvino-cpu")] = False
    assert took(bundle, device="cpu") == ("onnxruntime-cpu", "int8")
    del bundle.verdicts[("model.int8.onnx", "onnxruntime-cpu")]
    assert took(bundle, device="cpu") == ("openvino-cpu", "bf16")


@pytest.mark.filterwarnings("ignore:plans/model.(bf16|int8|fp32)")
def test_session__a_plan_of_another_gpu_is_passed_by_with_a_warning(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    machine["tensorrt"].refuses = {"sm90": "it was built for sm90, here is sm87"}
    with pytest.warns(UserWarning, match=r"fp16\.plan is not used: it was built for sm90"):
        session = bundle.session()
    assert session.backend == "onnxruntime-cuda"
    assert "fp16 on tensorrt: it was built for sm90, here is sm87" in session.why
    with (
        pytest.warns(UserWarning, match="is not used"),
        pytest.raises(EnvironmentLacks, match="cannot run") as caught,
    ):
        bundle.session(backend="tensorrt")
    assert "here is sm87" in caught.value.found


def test_session__of_two_plans_the_one_for_this_machine(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    machine["tensorrt"].refuses = {"sm90": "not for here"}
    own = Artifact("plans/own.plan", "", 0, "model", "plan", "fp16", {"sm": "sm87"})
    manifest = replace(bundle.manifest, artifacts=(*bundle.manifest.artifacts, own))
    both = Bundle(bundle.path, manifest, {**bundle.verdicts, (own.file, "tensorrt"): True})
    with pytest.warns(UserWarning, match="not for here"):
        assert both.session(backend="tensorrt").name.endswith("own.plan")


BROKEN = TkError("TensorRT 10.3 cannot load it", found="magic tag\n    more", fix="tk plan BUNDLE")


def test_session__a_plan_that_does_not_load_is_passed_by_with_its_reason(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    machine["tensorrt"].fails = {"fp16": BROKEN}
    with pytest.warns(UserWarning, match=r"fp16\.plan is not used: TensorRT 10\.3 .*\n.*magic tag"):
        session = bundle.session()
    assert (session.backend, session.name[-15:]) == ("tensorrt", "model.bf16.plan")
    assert "fp16 on tensorrt: TensorRT 10.3 cannot load it" in session.why
    assert "\n" not in session.why
    with pytest.warns(UserWarning, match="is not used"):
        assert took(bundle, precision="fp16") == ("onnxruntime-cuda", "fp16")


def test_session__no_plan_loads_and_nothing_else_was_proved(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    machine["tensorrt"].fails = {"fp16": BROKEN, "bf16": TkError("something else")}
    plans = Bundle(bundle.path, bundle.manifest, {
        (f"plans/model.{p}.plan", "tensorrt"): True for p in ("fp16", "bf16")
    })  # fmt: skip
    with pytest.warns(UserWarning, match="is not used"), pytest.raises(TkError) as caught:
        plans.session()
    assert caught.value is BROKEN, "that of the best pair, with its fix"


@pytest.mark.parametrize("wish", [{"backend": "tensorrt"}, {"backend": "onnxruntime"}, {}])
def test_session__what_was_asked_for_or_a_graph_fails_with_an_error(
    bundle: Bundle, machine: dict[str, Module], wish: dict[str, str]
) -> None:
    machine["tensorrt"].fails = {"fp16": BROKEN}
    machine["onnxruntime-cuda"].fails = {"fp16": BROKEN}
    if not wish:  # a graph is never moved to the CPU without an error
        machine["tensorrt"].lacks = "no TensorRT"
    with pytest.raises(TkError) as caught:
        bundle.session(**wish)  # type: ignore[arg-type]
    assert caught.value is BROKEN


def test_session__a_plan_that_was_changed_is_an_error_always(
    bundle: Bundle, machine: dict[str, Module], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Bundle, "_read", READ)
    (tmp_path / "plans").mkdir()
    for precision in PRECISIONS:
        (tmp_path / f"plans/model.{precision}.plan").write_bytes(b"other")
    with pytest.raises(CheckFailed, match="was changed"):
        Bundle(tmp_path, bundle.manifest, bundle.verdicts).session()


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"device": "gpu"}, ("'gpu' is not a device", "cuda:N")),
        ({"device": "cuda:x"}, ("is not a device",)),
        ({"precision": "fp8"}, ("unknown precision", "int8")),
        ({"backend": "tflite"}, ("unknown back end", "openvino-cpu")),
    ],
)
def test_session__words_that_mean_nothing(
    bundle: Bundle, wish: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(TkError) as caught:
        bundle.session(**wish)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_session__nothing_proved_lists_what_is_there_and_how_to_make_it(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    float_only = replace(bundle.manifest, artifacts=bundle.manifest.artifacts[:1])
    name = "model.fp32.onnx"
    lean = Bundle(bundle.path, float_only, {(name, "onnxruntime-cpu"): True})

    with pytest.raises(TkError) as caught:
        lean.session(precision="int8")
    assert caught.value.found == "passed: fp32 on onnxruntime-cpu"
    assert f"tk export SOURCE {bundle.path} --images DIR --precision int8" in caught.value.fix

    with pytest.raises(TkError) as caught:
        lean.session(backend="tensorrt")
    assert caught.value.fix.endswith(f"tk plan {bundle.path}")
    with pytest.raises(TkError) as caught:
        lean.session(backend="tensorrt", precision="fp16")  # no graph to build it from
    assert f"tk export SOURCE {bundle.path} --images DIR --precision fp16" in caught.value.fix

    with pytest.raises(TkError) as caught:
        lean.session(backend="openvino")
    assert "never judged: fp32 on openvino-cpu" in caught.value.found
    assert f"tk verify {bundle.path} --backend openvino-cpu --record" in caught.value.fix

    lean.verdicts[(name, "openvino-cpu")] = False
    with pytest.raises(TkError) as caught:
        lean.session(backend="openvino")
    assert "failed the gate: fp32 on openvino-cpu" in caught.value.found


def test_session__a_part_without_the_precision_runs_in_float32(
    tiny_world: Path, machine: dict[str, Module]
) -> None:
    opened = Bundle.open(tiny_world / "bundles" / "segmenter")
    half = Artifact("encoder.fp16.onnx", "", 0, "encoder", "onnx", "fp16")
    manifest = replace(opened.manifest, artifacts=(*opened.manifest.artifacts, half))
    files = [artifact.file for artifact in manifest.artifacts]
    both = Bundle(opened.path, manifest, {(f, "onnxruntime-cpu"): True for f in files})
    assert both.session("encoder", precision="fp16").name.endswith("encoder.fp16.onnx")
    assert both.session("decoder", precision="fp16").name.endswith("decoder.fp32.onnx")
    with pytest.raises(TkError, match="nothing proved"):
        both.session("decoder", precision="int8")


def test_session__a_machine_that_lacks_everything(
    bundle: Bundle, machine: dict[str, Module]
) -> None:
    for name, module in machine.items():
        module.lacks = f"no {name}: pip install it"
    with pytest.raises(EnvironmentLacks) as caught:
        bundle.session(precision="fp32")
    for name in BACKENDS:
        assert f"no {name}: pip install it" in caught.value.found
    assert caught.value.exit_code == 3


def test_session__real_back_end_says_why(tiny_world: Path) -> None:
    with Bundle.open(tiny_world / "bundles" / "embedder").session() as session:
        assert session.backend == "onnxruntime-cpu"
        assert session.why == "the only pair that passed the gate"
        found = session.run({"image": tiny_bundles.blob((255, 0, 0))[None]})["embedding"]
        assert found.shape == (1, 3)
