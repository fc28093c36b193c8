"""The TensorRT session against stand-ins made from the real bindings' API: no GPU is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.export.tensorrt.tables import VERSIONS
from tests.export.tensorrt.world import GPU, PART, World, world_maker

from tk.runtime import machine
from tk.runtime.backends.base import Session
from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.facts import unfit
from tk.runtime.backends.tensorrt.session import LANES, TensorRTSession, open_session, refusal
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.manifest import Part, TensorSpec

Make = Callable[..., World]
ALL = ("linux-x86_64", "linux-aarch64", "tegra-aarch64")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An x86 computer, wherever the tests run."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "TEGRA", tmp_path / "none")
    monkeypatch.setattr(machine, "DEVICE_TREE", tmp_path / "none")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return world_maker(monkeypatch)


def facts(world: World, **values: Any) -> dict[str, Any]:
    return {"tensorrt": world.trt.__version__, "sm": "sm90", "gpu": GPU.name, **values}


def start(world: World, part: Part = PART) -> TensorRTSession:
    session = open_session(b"PLAN", "m/p.plan", "fp16", part, 0, facts=facts(world))
    assert isinstance(session, TensorRTSession)
    return session


def image(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 100, (rows, 4), dtype=np.uint8)


def answer(session: Session, array: NDArray[np.uint8]) -> NDArray[np.generic]:
    return session.run({"image": array})["embedding"]


@pytest.mark.parametrize("version", VERSIONS)
def test_session__right_answers_at_every_shape_in_any_order(make: Make, version: str) -> None:
    world = make(version)
    with start(world) as session:
        for step, rows in enumerate([3, 3, 3, 16, 3, 16, 16, 1, 3, 16, 1, 1, 1]):
            array = image(rows, step)
            np.testing.assert_array_equal(answer(session, array), array.astype(np.float32) * 2)
        assert session.backend == "tensorrt" and session.calls == 13
        assert isinstance(session, TensorRTSession) and session.graph_count == 3
    assert world.cuda.live == {}, "closing frees all memory, graphs and the stream"


def test_session__graph_from_the_third_run_on(make: Make) -> None:
    world = make("10.13")
    with start(world) as session:
        launches = []
        for step in range(5):
            answer(session, image(2, step))
            launches.append(world.cuda.launches)
    assert launches == [0, 0, 1, 2, 3]
    assert world.contexts == 2


def test_session__graph_is_recorded_again_when_memory_moved(make: Make) -> None:
    world = make("11.4")
    with start(world) as session:
        for step in range(3):
            answer(session, image(2, step))
        answer(session, image(16))  # the blocks grow: other addresses
        before = world.cuda.records
        for step in range(3):
            array = image(2, step)
            np.testing.assert_array_equal(answer(session, array), array.astype(np.float32) * 2)
        assert world.cuda.records == before + 1


def test_session__work_that_cannot_be_recorded_runs_without_a_graph(make: Make) -> None:
    world = make("10.3")
    world.cuda.breaks_recording = True
    with start(world) as session:
        for step in range(4):
            array = image(2, step)
            np.testing.assert_array_equal(answer(session, array), array.astype(np.float32) * 2)
        assert world.cuda.launches == 0 and world.cuda.records == 1


def check_runs(session: Session, rows: int, times: int = 4) -> None:
    """Run a shape some times, and compare every answer."""
    for step in range(times):
        array = image(rows, step)
        np.testing.assert_array_equal(answer(session, array), array.astype(np.float32) * 2)


def test_session__no_memory_for_a_graph_runs_without_one(make: Make) -> None:
    world = make("10.3")
    world.cuda.instantiates = False
    with start(world) as session:
        check_runs(session, 2)
        assert world.cuda.launches == 0 and world.cuda.records == 1, "not tried at each run"
        assert not world.cuda.error_left
    assert world.cuda.live == {}


def test_session__ctrl_c_while_recording_ends_the_recording(make: Make) -> None:
    world = make("10.3")

    def interrupt() -> None:
        if world.cuda.recording is not None:
            world.running = lambda: None
            raise KeyboardInterrupt

    world.running = interrupt
    with start(world) as session:
        check_runs(session, 2, 2)
        with pytest.raises(KeyboardInterrupt):
            answer(session, image(2))
        assert world.cuda.recording is None
        check_runs(session, 2)
        assert world.cuda.launches == 4
    assert world.cuda.live == {}


def test_session__errors_of_a_failed_recording_are_not_those_of_the_run(make: Make) -> None:
    world = make("10.3", recordable=False)
    with start(world) as session:
        check_runs(session, 2, 2)
        world.executes = False
        with pytest.raises(TkError, match="illegal instruction") as caught:
            answer(session, image(2))  # not recorded, then run
        assert "capturing" not in str(caught.value)
        world.executes = True
        check_runs(session, 2)
    assert world.cuda.records == 1 and not world.cuda.error_left


def test_session__shapes_that_tensorrt_refuses_are_set_anew(make: Make) -> None:
    world = make("10.13", refused_rows={5})
    with start(world) as session:
        check_runs(session, 2, 1)
        for _ in range(2):
            with pytest.raises(
                TkError, match=r"takes no inputs of shapes 'image' \(5, 4\)"
            ) as caught:
                answer(session, image(5))
            assert "dimensions do not fit" in caught.value.found
        check_runs(session, 2)
        world.refused_rows.clear()
        check_runs(session, 5)


def test_session__graphs_on_and_off_agree(make: Make) -> None:
    world = make("11.0")
    off = TensorRTSession(world.trt, b"PLAN", "m", "fp16", PART, graphs=False)
    with start(world) as on, off:
        for step in range(4):
            array = image(5, step)
            np.testing.assert_array_equal(answer(on, array), answer(off, array))
        assert on.graph_count == 1 and off.graph_count == 0


def test_session__keeps_few_shapes(make: Make) -> None:
    world = make("10.13")
    with start(world) as session:
        for rows in range(1, LANES + 4):
            for step in range(3):
                answer(session, image(rows, step))
        assert session.graph_count <= LANES
        kinds = [getattr(item, "kind", "") for item in world.cuda.live.values()]
        assert kinds.count("executable graph") == LANES
    assert world.cuda.live == {}


def test_session__a_plan_that_allows_one_context_runs_without_graphs(make: Make) -> None:
    world = make("8.6", shares_profile=False)
    with start(world) as session:
        check_runs(session, 2)
        assert session.graph_count == 0 and world.contexts == 2, "not tried at each run"


@pytest.mark.parametrize("version", ["8.6", "10.3", "11.4"])
def test_session__rows_that_only_the_data_decides(make: Make, version: str) -> None:
    world = make(version, data_dependent=True)
    world.spec["embedding"] = (False, "FLOAT", (-1, 4))
    with start(world) as session:
        for rows in ([0, 3, 0, 5], [1, 1, 1, 1], [0, 0, 0, 0]):
            array = np.repeat(np.array(rows, np.uint8)[:, None], 4, axis=1)
            kept = array[array.sum(1) > 0].astype(np.float32) * 2
            np.testing.assert_array_equal(answer(session, array), kept)
    assert world.cuda.live == {}


@pytest.mark.parametrize("version", ["8.6", "10.3"])
def test_session__output_without_memory_is_our_error(make: Make, version: str) -> None:
    world = make(version, data_dependent=True, free=4096)
    with start(world) as session:
        few = np.zeros((16, 4), np.uint8)
        session.run({"image": few})
        world.cuda.free = 0
        world.executes = False  # the real one answers so when an allocator gives nothing
        with pytest.raises(EnvironmentLacks, match="output embedding"):
            session.run({"image": few + np.uint8(1)})


def test_session__the_caller_owns_the_outputs(make: Make) -> None:
    world = make("11.4")
    with start(world) as session:
        first = answer(session, image(3, 1))
        copy = first.copy()
        answer(session, image(3, 2))
    np.testing.assert_array_equal(first, copy)


def test_session__batch_above_the_plan(make: Make) -> None:
    with start(make("10.3")) as session, pytest.raises(TkError) as caught:
        answer(session, image(17))
    assert "(1..16, 4)" in str(caught.value) and "(17, 4)" in str(caught.value)
    assert "--batch-size" in caught.value.fix


def test_session__no_rows_at_all(make: Make) -> None:
    with start(make("10.3")) as session, pytest.raises(TkError, match="outside"):
        answer(session, image(0))


def test_session__gpu_memory_too_small_for_the_work(make: Make) -> None:
    world = make("10.3", free=64 << 20, scratch=100 << 20)
    with pytest.raises(EnvironmentLacks) as caught:
        start(world)
    assert "100 MiB" in str(caught.value) and "64 MiB free of 64 MiB" in str(caught.value)
    assert world.cuda.live == {}


def test_session__a_jetson_gives_more_than_it_calls_free(make: Make) -> None:
    world = make("10.3", free=64 << 20, scratch=40 << 20)
    world.cuda.cached = 60 << 20
    with start(world) as session:
        check_runs(session, 2)


def test_session__a_failed_allocation_leaves_no_error_to_others(make: Make) -> None:
    world = make("10.3", free=64 << 20, scratch=100 << 20)
    with pytest.raises(EnvironmentLacks, match="memory for the work of"):
        start(world)
    world.cuda.pins, world.scratch = False, 1000
    with start(world) as session, pytest.raises(TkError, match="pinning"):
        answer(session, image(2))
    assert not world.cuda.error_left


def test_session__no_memory_for_the_only_context(make: Make) -> None:
    world = make("10.3", free=64 << 20, room=0)
    with pytest.raises(EnvironmentLacks, match=r"not enough GPU memory to run m/p\.plan") as caught:
        start(world)
    assert "MiB free of 64 MiB" in caught.value.found and "OutOfMemory" in caught.value.found
    assert world.cuda.live == {}


def test_session__no_memory_for_another_context_takes_that_of_older_shapes(make: Make) -> None:
    world = make("10.13", room=3)  # the shared one and two of single shapes
    with start(world) as session:
        for rows in (1, 2, 3, 1, 3):
            check_runs(session, rows)
            assert session.graph_count == min(2, session.calls // 4)
        world.room = 1
        check_runs(session, 4)
        assert session.graph_count == 0
    assert world.cuda.live == {}


@pytest.mark.parametrize("version", ["8.6", "11.4"])
def test_session__a_runtime_that_does_not_start(make: Make, version: str) -> None:
    world = make(version, starts=False)
    with pytest.raises(EnvironmentLacks, match=r"memory to start TensorRT for m/p\.plan") as caught:
        start(world)
    assert "failure with error: 2" in caught.value.found and "free of" in caught.value.found
    world.start_error = "CUDA initialization failure with error: 35. Please check"
    with pytest.raises(EnvironmentLacks, match=r"does not start, for m/p\.plan") as caught:
        start(world)
    assert "error: 35" in caught.value.found and "tk doctor" in caught.value.fix


def test_session__memory_that_cuda_cannot_tell(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make("10.3", starts=False)
    code = world.cuda.error.cudaErrorMemoryAllocation
    monkeypatch.setattr(world.cuda.module, "cudaMemGetInfo", lambda: (code, 0, 0))
    with pytest.raises(EnvironmentLacks, match="CUDA does not tell how much is free"):
        start(world)


@pytest.mark.parametrize("name", ["image", "embedding"])
def test_session__tensors_in_host_memory_are_refused(make: Make, name: str) -> None:
    with pytest.raises(TkError, match=f"tensor '{name}' are sizes") as caught:
        start(make("10.3", host={name}))
    assert "no output is a size" in caught.value.fix


def test_session__gpu_memory_too_small_for_a_tensor(make: Make) -> None:
    world = make("10.3", free=2000)
    with start(world) as session:
        world.cuda.free = 10
        with pytest.raises(EnvironmentLacks, match=r"tensor image .*\n.*in one piece"):
            answer(session, image(16))


def test_session__gpu_memory_too_small_for_the_weights(make: Make) -> None:
    words = "Requested amount of GPU memory (9 bytes) could not be allocated: out of memory"
    world = make("10.13", free=64 << 20, loadable=False, load_error=words)
    with pytest.raises(EnvironmentLacks, match=r"to load m/p\.plan") as caught:
        start(world)
    assert "64 MiB free of 64 MiB" in caught.value.found and words in caught.value.found


def test_session__pinned_memory_that_lacks_is_our_error(make: Make) -> None:
    world = make("10.3")
    with start(world) as session:
        world.cuda.pins = False
        with pytest.raises(TkError, match=r"pinning .* MiB of memory"):
            answer(session, image(2))
    assert world.cuda.live == {}


def test_session__runs_on_the_gpu_that_was_asked_for(make: Make) -> None:
    world = make("10.13", gpus=[GPU, replace(GPU, name="other")])
    with open_session(
        b"PLAN", "m", "fp16", PART, 0, facts=facts(world, gpu="other"), device=1
    ) as session:
        assert world.cuda.device == 1
        world.cuda.device = 0  # as another thread would find it
        answer(session, image(2))
        assert world.cuda.device == 1
    with pytest.raises(EnvironmentLacks, match="no GPU 2"):
        open_session(b"PLAN", "m", "fp16", PART, 0, facts=facts(world), device=2)
    assert "no GPU 2" in refusal(facts(world), 2)


def test_session__a_broken_install_is_a_reason_not_a_crash(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make("10.3")

    def fail(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    assert "libnvinfer.so.10" in refusal(facts(world))


def test_session__host_code_stays_off(make: Make) -> None:
    world = make("11.4")
    with start(world):
        assert world.runtime.engine_host_code_allowed is False


@pytest.mark.parametrize("version", [*VERSIONS, "lean-11.4"])
def test_session__plugins_are_known_before_a_plan_is_loaded(make: Make, version: str) -> None:
    world = make(version)
    known = facts(world, version_compatible=True)
    open_session(b"PLAN", "m", "fp16", PART, 0, facts=known).close()
    names = [name for _, name, _ in world.fake.calls]
    if version.startswith("lean"):
        assert "init_libnvinfer_plugins" not in names
    else:
        assert names.index("init_libnvinfer_plugins") < names.index("deserialize_cuda_engine")


def test_session__memory_of_contexts_by_version(make: Make) -> None:
    for version, way in (("8.6", "without_device_memory"), ("10.3", "create_execution_context")):
        world = make(version)
        with start(world):
            names = [name for _, name, _ in world.fake.calls]
            assert any(name.endswith(way) for name in names)
            assert ("set_device_memory" in names) == (version == "10.3")


def test_session__a_damaged_plan_tells_tensorrts_words(make: Make) -> None:
    with pytest.raises(TkError, match="magic tag") as caught:
        start(make("10.13", loadable=False))
    assert "tk plan" in caught.value.fix


def test_session__failing_run_tells_tensorrts_words(make: Make) -> None:
    with start(make("10.3", executes=False)) as session, pytest.raises(TkError, match="failed"):
        answer(session, image(1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensorrt": "10.13.1"}, "built by TensorRT 10.13.1"),
        ({"tensorrt": "8.6.1"}, "built by TensorRT 8.6.1"),
        ({"sm": "sm87", "gpu": "Orin"}, "sm87 (Orin), here is sm90"),
        ({"sm": "sm87", "hardware": "same"}, "sm87"),
        ({"platform": "tegra-aarch64"}, "built on tegra-aarch64, here is linux-x86_64"),
        ({"platform": "tegra-aarch64", "hardware": "ampere"}, "built on tegra-aarch64"),
        ({"tensorrt": "10.13.3.10"}, "built by TensorRT 10.13.3.10"),
        ({"sm": None}, "does not say"),
        ({"tensorrt": None}, "does not say"),
    ],
)
def test_session__a_plan_for_another_machine_is_never_loaded(
    make: Make, change: dict[str, Any], said: str
) -> None:
    world = make("10.13")
    with pytest.raises(CheckFailed) as caught:
        open_session(b"PLAN", "m", "fp16", PART, 0, facts=facts(world) | change)
    assert said in str(caught.value)
    assert said in refusal(facts(world) | change)
    assert world.fake.called("deserialize_cuda_engine") == []


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("8.6.1.6", "8.6.1.6", True),
        ("8.6.1.6", "8.6.1.2", False),
        ("8.6.1", "8.6.1.6", True),  # JetPack's package does not tell the fourth number
        ("8.6.1.6", "8.6.1", True),
        ("10.3.0.26", "10.3.0.post1", True),
        ("10.13.3.9.1", "10.13.3.9.2", True),
        ("10.13", "10.13.3", False),
    ],
)
def test_facts__versions_agree_as_far_as_both_tell_them(built: str, here: str, fits: bool) -> None:
    known = {"tensorrt": built, "sm": GPU.sm}
    reason = unfit(known, "tensorrt", here, GPU, "linux-x86_64")
    assert (reason == "") is fits
    assert fits or reason == f"it was built by TensorRT {built}, here is tensorrt {here}"


def test_facts__a_plan_that_does_not_tell_its_platform_is_of_any() -> None:
    known = {"tensorrt": "10.3.0", "sm": "sm87", "hardware": "ampere"}
    for there in ("linux-x86_64", "linux-aarch64", "tegra-aarch64"):
        assert unfit(known, "tensorrt", "10.3.0", GPU, there) == ""
        fits = [
            unfit({**known, "platform": p}, "tensorrt", "10.3.0", GPU, there) == "" for p in ALL
        ]
        assert fits == [p == there for p in ALL]


def test_session__a_plan_without_facts_is_never_loaded(make: Make) -> None:
    world = make("10.13")
    with pytest.raises(CheckFailed, match="does not say"):
        open_session(b"PLAN", "m", "fp16", PART, 0)
    assert world.fake.called("deserialize_cuda_engine") == []


def test_session__wide_plan_runs_on_newer_gpus(make: Make) -> None:
    world = make("10.13")
    assert refusal(facts(world, sm="sm87", hardware="ampere")) == ""
    old = replace(GPU, capability=(7, 5))
    wide = facts(world, sm="sm87", hardware="ampere")
    assert unfit(wide, "tensorrt", "10.13.3", old, "linux-x86_64")


def test_session__another_gpu_of_the_same_kind_warns(make: Make) -> None:
    world = make("10.13")
    with pytest.warns(RuntimeWarning, match="built on H100"):
        open_session(b"PLAN", "m", "fp16", PART, 0, facts=facts(world, gpu="H100")).close()


def test_session__lean_library_runs_version_compatible_plans_only(make: Make) -> None:
    world = make("lean-11.4")
    assert "version-compatible" in refusal(facts(world))
    wide = facts(world, version_compatible=True)
    assert refusal(wide) == ""
    with open_session(b"PLAN", "m", "fp16", PART, 0, facts=wide) as session:
        np.testing.assert_array_equal(answer(session, image(2)), image(2).astype(np.float32) * 2)


def test_session__a_broken_whole_library_leaves_the_lean_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make("lean-11.4")
    monkeypatch.setattr(library, "installed", lambda: ["tensorrt", "tensorrt_lean"])
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as an import that fails
    wide = facts(world, version_compatible=True)
    assert refusal(wide) == ""
    with open_session(b"PLAN", "m", "fp16", PART, 0, facts=wide) as session:
        check_runs(session, 2)
    # The lean one does not run this plan, so the broken one is what has to be mended.
    assert refusal(facts(world)).startswith("tensorrt is installed but does not load")
    with pytest.raises(EnvironmentLacks, match="does not load") as caught:
        open_session(b"PLAN", "m", "fp16", PART, 0, facts=facts(world))
    assert "driver" in caught.value.fix


def test_session__int64_is_refused_by_8_6(make: Make) -> None:
    part = Part((TensorSpec("ids", "int64", ("B", 4)),), PART.outputs, 4)
    world = make("8.6")
    with pytest.raises(EnvironmentLacks, match="no int64"):
        start(world, part)
    assert world.fake.called("deserialize_cuda_engine") == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"image": (True, "UINT8", (-1, 4))}, "other inputs and outputs"),
        ({"image": (True, "FLOAT", (-1, 4)), "embedding": (False, "FLOAT", (-1, 4))}, "float32"),
        ({"image": (True, "UINT8", (-1, 5)), "embedding": (False, "FLOAT", (-1, 4))}, "5"),
        ({"image": (False, "UINT8", (-1, 4)), "embedding": (False, "FLOAT", (-1, 4))}, "an output"),
        ({"image": (True, "UINT8", (-1, 4)), "embedding": (False, "BF16", (-1, 4))}, "numpy"),
    ],
)
def test_session__plan_and_manifest_disagree(make: Make, spec: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        start(make("10.3", spec=spec))


def test_session__times_the_model_alone(make: Make) -> None:
    world = make("10.3")
    with start(world) as session:
        assert session.gpu_seconds({"image": image(2)}, 5) == [0.002] * 5
    assert world.cuda.live == {}


def test_session__closing_twice_is_harmless(make: Make) -> None:
    world = make("10.3")
    session = start(world)
    answer(session, image(2))
    session.close()
    session.close()
    assert world.cuda.live == {}
    with pytest.raises(TkError, match="closed"):
        answer(session, image(2))


def test_library__no_gpu_means_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_gpus", lambda: [])
    monkeypatch.setattr(library, "installed", lambda: ["tensorrt"])
    monkeypatch.setattr(library, "cuda_python", lambda: True)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    assert "no NVIDIA GPU" in library.missing()
    with pytest.raises(EnvironmentLacks, match="GPU"):
        library.load()
    with pytest.raises(EnvironmentLacks, match="cannot run m"):
        open_session(b"", "m", "fp16", PART, 0, facts={})


def test_library__broken_install_is_our_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("10.3")

    def fail(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(EnvironmentLacks, match=r"libnvinfer\.so\.10"):
        library.load()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("10.13.3.9", (10, 13, 3, 9)), ("8.6.1", (8, 6, 1)), ("10.3.0.post1", (10, 3, 0)), ("", ())],
)
def test_library__versions(text: str, numbers: tuple[int, ...]) -> None:
    assert library.parse_version(text) == numbers
