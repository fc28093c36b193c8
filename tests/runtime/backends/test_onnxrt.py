"""ONNX Runtime, both back ends: what is missing, no silent fallback, bound inputs and outputs.

No GPU is needed: the session of the CUDA back end runs here on the real package with memory `cpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray
from tests import tiny_bundles

from tk.runtime.backends.onnxrt import library
from tk.runtime.backends.onnxrt import session as cpu
from tk.runtime.backends.onnxrt_cuda import session as cuda
from tk.runtime.backends.onnxrt_cuda.options import MEMORY_SHARE, provider_options
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part, TensorSpec

GPU = Gpu("NVIDIA Orin", (8, 7), 8 << 30, (12, 6))

KNOWN_OPTIONS = {
    "device_id", "has_user_compute_stream", "user_compute_stream", "gpu_mem_limit",
    "arena_extend_strategy", "cudnn_conv_algo_search", "do_copy_in_default_stream",
    "gpu_external_alloc", "gpu_external_free", "gpu_external_empty_cache",
    "cudnn_conv_use_max_workspace", "enable_cuda_graph", "cudnn_conv1d_pad_to_nc1d",
    "tunable_op_enable", "tunable_op_tuning_enable", "tunable_op_max_tuning_duration_ms",
    "enable_skip_layer_norm_strict_mode", "prefer_nhwc", "use_ep_level_unified_stream", "use_tf32",
    "sdpa_kernel", "fuse_conv_bias",
}  # fmt: skip
"""Names that the provider reads (microsoft/onnxruntime, cuda_execution_provider_info.cc, 1.20 and
newer); it refuses any other."""

PART = Part(
    (TensorSpec("image", "uint8", ("B", 4)), TensorSpec("keep", "bool", ("B",))),
    (TensorSpec("sum", "float32", ("B",)), TensorSpec("kept", "float32", ("K", 4))),
    8,
)
GRAPH = """<ir_version: 9, opset_import: ["" : 18]>
g (uint8[B,4] image, bool[B] keep) => (float[B] sum, float[K,4] kept) {
    x = Cast<to = 1> (image)
    one = Constant<value_ints = [1]> ()
    sum = ReduceSum<keepdims = 0> (x, one)
    kept = Compress<axis = 0> (x, keep)
}"""


def graph() -> bytes:
    made: bytes = onnx.parser.parse_model(GRAPH).SerializeToString()
    return made


@pytest.fixture
def bound() -> cuda.BoundSession:
    """The session of the CUDA back end, on the CPU."""
    session = library.load_graph(graph(), "m", 1, {}, ["CPUExecutionProvider"])
    return cuda.BoundSession(session, "m", "fp32", PART, {}, GPU, ("cpu", 0))


def feed(rows: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    image = random.integers(0, 255, (rows, 4), dtype=np.uint8)
    return {"image": image, "keep": random.integers(0, 2, rows).astype(bool)}


def pretend(
    monkeypatch: pytest.MonkeyPatch, *, packages: tuple[str, ...], gpus: tuple[Gpu, ...] = (GPU,)
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in (library.CPU, library.GPU):
            if name in packages:
                return "1.31.1"
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr(cuda, "find_gpus", lambda: list(gpus))


def test_bound__equals_the_plain_session_at_every_shape(bound: cuda.BoundSession) -> None:
    plain = cpu.open_session(graph(), "m", "fp32", PART, 1)
    with bound, plain:
        # Outputs of K rows: only the data decides how many, and may be none.
        for step, rows in enumerate([3, 3, 8, 1, 1, 3, 0]):
            inputs = feed(rows, step)
            found, expected = bound.run(inputs), plain.run(inputs)
            assert set(found) == {"sum", "kept"}
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)


def test_bound__the_caller_owns_inputs_and_outputs(bound: cuda.BoundSession) -> None:
    first, second = feed(3, 1), feed(3, 2)
    kept = {name: array.copy() for name, array in first.items()}
    answer = bound.run(first)["sum"]
    copy = answer.copy()
    bound.run(second)
    np.testing.assert_array_equal(answer, copy)
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)


def test_bound__inputs_that_are_not_contiguous(bound: cuda.BoundSession) -> None:
    inputs = feed(6)
    turned = {"image": np.asfortranarray(inputs["image"])[::-2], "keep": inputs["keep"][::-2]}
    found = bound.run(turned)["sum"]
    np.testing.assert_array_equal(found, inputs["image"][::-2].sum(axis=1, dtype=np.float32))


def test_bound__memory_is_taken_anew_only_for_another_shape(bound: cuda.BoundSession) -> None:
    bound.run(feed(3))
    first = bound._held["image"]
    bound.run(feed(3, 1))
    assert bound._held["image"] is first
    bound.run(feed(4))
    assert bound._held["image"] is not first
    bound.close()
    assert not bound._held


class Failing:
    """A session of ONNX Runtime that runs out of memory."""

    def __init__(self, text: str) -> None:
        self.text = text

    def disable_fallback(self) -> None:
        self.fallback = False

    def io_binding(self) -> Any:
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", EnvironmentLacks, ("not enough GPU",)),
        (
            "Non-zero status code. bfc_arena.cc Failed to allocate memory for requested buffer of "
            "size 2147483648",
            EnvironmentLacks,
            ("2,048 MiB more in one piece", "8,192 MiB", "6,554 MiB", "--batch-size"),
        ),
        (
            "bfc_arena.cc Extend Available memory of 100 is smaller than requested bytes of "
            "1073741824",
            EnvironmentLacks,
            ("1,024 MiB", "NVIDIA Orin"),
        ),
        ("CUDA failure 2: out of memory", EnvironmentLacks, ("8,192 MiB",)),
        (
            "Got invalid dimensions\nmore",
            TkError,
            ("failed while running: Got invalid dimensions",),
        ),
    ],
)
def test_bound__errors_while_running(
    text: str, kind: type[TkError], words: tuple[str, ...]
) -> None:
    session = cuda.BoundSession(Failing(text), "d/m.onnx", "fp16", PART, {}, GPU, ("cuda", 0))
    with pytest.raises(kind) as caught:
        session.run(feed(1))
    assert type(caught.value) is kind and "d/m.onnx" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_options__bounded_arena_and_no_tf32() -> None:
    options = provider_options(2, 10 << 30)
    assert set(options) <= KNOWN_OPTIONS
    assert all(isinstance(value, str) for value in options.values())
    assert options["device_id"] == "2" and options["use_tf32"] == "0"
    assert int(options["gpu_mem_limit"]) == int((10 << 30) * MEMORY_SHARE) < 10 << 30
    assert options["arena_extend_strategy"] == "kNextPowerOfTwo"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert provider_options(0, 1, tf32=True)["use_tf32"] == "1"


@pytest.mark.parametrize(
    ("precision", "tf32"), [("fp32", "0"), ("int8", "0"), ("fp16", "1"), ("bf16", "1")]
)
def test_options__half_floats_get_their_tensor_cores(precision: str, tf32: str) -> None:
    """Without TF32, ONNX Runtime keeps convolutions of every type from them."""
    assert provider_options(0, 1, precision=precision)["use_tf32"] == tf32


def test_cuda__a_quiet_move_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, built for the CPU, takes the wish for CUDA and runs on the CPU."""
    pretend(monkeypatch, packages=(library.GPU,))
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EnvironmentLacks) as caught,
    ):
        cuda.open_session(graph(), "d/m.onnx", "fp32", PART, 1)
    assert caught.value.expected == "CUDAExecutionProvider"
    assert caught.value.found == "CPUExecutionProvider"
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.fix


@pytest.mark.parametrize(
    ("facts", "tf32"), [(None, "0"), ({"tf32": True}, "1"), ({"tf32": 1}, "0")]
)
def test_cuda__what_reaches_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any] | None, tf32: str
) -> None:
    pretend(monkeypatch, packages=(library.GPU,), gpus=(GPU, GPU))
    asked: list[Any] = []

    class Running(Failing):
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def load(data: bytes, name: str, threads: int, weights: Any, providers: Any) -> Any:
        asked.append(providers)
        return Running("")

    monkeypatch.setattr(library, "load_graph", load)
    session = cuda.open_session(graph(), "m", "fp32", PART, 1, facts=facts, device=1)
    ((provider, options), last) = asked[0]
    assert (provider, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == "1" and options["use_tf32"] == tf32
    assert session.backend == "onnxruntime-cuda"


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN is unavailable or disabled; Conv needs it",
        "CUDA failure 209: no kernel image is available for execution on the device",
        "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED",
    ],
)
def test_cuda__of_this_machine_is_not_the_graphs_fault(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    session = cuda.BoundSession(Failing(text), "d/m.onnx", "fp16", PART, {}, GPU, ("cuda", 0))
    with pytest.raises(EnvironmentLacks, match="with the CUDA of this machine") as caught:
        session.run(feed(1))
    assert caught.value.found == text and "tk doctor" in caught.value.fix

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(EnvironmentLacks, match=r"cannot run d/m\.onnx with the CUDA"):
        library.load_graph(graph(), "d/m.onnx", 1, {}, ["CPUExecutionProvider"])


def test_cuda__memory_lacks_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, packages=(library.GPU,))

    def load(*_: Any) -> Any:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1048576")

    monkeypatch.setattr(library, "load_graph", load)
    with pytest.raises(EnvironmentLacks, match="not enough GPU memory") as caught:
        cuda.open_session(graph(), "m", "fp32", PART, 1)
    assert caught.value.expected.startswith("1 MiB")


@pytest.mark.parametrize(
    ("packages", "gpus", "words"),
    [
        ((library.GPU,), (GPU,), ""),
        ((library.CPU,), (GPU,), "build for the CPU: pip uninstall onnxruntime"),
        ((library.GPU,), (), "no NVIDIA GPU"),
        ((library.CPU, library.GPU), (GPU,), "both installed"),
    ],
)
def test_cuda__what_is_missing(
    monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...], gpus: tuple[Gpu, ...], words: str
) -> None:
    pretend(monkeypatch, packages=packages, gpus=gpus)
    said = cuda.missing()
    assert words in said and bool(words) == bool(said)
    if words:
        with pytest.raises(EnvironmentLacks, match="cannot run m"):
            cuda.open_session(graph(), "m", "fp32", PART, 1)


def test_cuda__gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, packages=(library.GPU,))
    assert cuda.refusal({}, 0) == ""
    assert "no GPU 3: CUDA shows 1" in cuda.refusal({}, 3)


def test_cpu__both_packages_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, tiny_world: Any
) -> None:
    from tk.runtime.bundle import Bundle

    pretend(monkeypatch, packages=(library.CPU, library.GPU))
    with pytest.raises(EnvironmentLacks) as caught:
        Bundle.open(tiny_world / "bundles" / "embedder").session()
    for word in ("onnxruntime and onnxruntime-gpu", "pip uninstall", "tk-vision[gpu]"):
        assert word in caught.value.found
    assert caught.value.exit_code == 3


def test_cpu__either_package_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (library.CPU, library.GPU):
        pretend(monkeypatch, packages=(package,))
        assert cpu.missing() == ""


def test_cpu__none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, packages=())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "tk-vision[cpu]" in cpu.missing() and "tk-vision[gpu]" in cpu.missing()


@pytest.mark.parametrize("name", [tiny_bundles.EMBEDDER[:40], ""])
def test_cpu__no_graph(name: str) -> None:
    with pytest.raises(TkError, match="refuses m"):
        cpu.open_session(name.encode(), "m", "fp32", PART, 1)


def test_library__memory_wanted() -> None:
    made: Callable[[str], int | None] = lambda text: library.memory_wanted(RuntimeError(text))  # noqa: E731
    assert made("requested buffer of size 12") == 12
    assert made("CUDA out of memory") == 0
    assert made("something else") is None
