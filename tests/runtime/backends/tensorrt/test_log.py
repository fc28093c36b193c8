"""What TensorRT says reaches the one whose work it is about, though it has one logger for all."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from tests.export.tensorrt.world import GPU, PART, World, world_maker

from tk.runtime.backends.base import Session
from tk.runtime.backends.tensorrt.log import Log
from tk.runtime.backends.tensorrt.session import open_session
from tk.runtime.errors import EnvironmentLacks, TkError

Make = Callable[..., World]
IMAGE = {"image": np.ones((2, 4), np.uint8)}
NO_ROOM = "Error Code 2: OutOfMemory (no further information)"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return world_maker(monkeypatch)


def start(world: World, name: str) -> Session:
    facts = {"tensorrt": world.trt.__version__, "sm": "sm90", "gpu": GPU.name}
    return open_session(b"PLAN", name, "fp16", PART, 0, facts=facts)


def test_log__two_sessions_each_tell_their_own_errors(make: Make) -> None:
    world = make("10.3")
    with start(world, "one") as one:
        world.loadable, world.load_error = False, NO_ROOM
        with pytest.raises(EnvironmentLacks, match="not enough GPU memory to load two") as caught:
            start(world, "two")
        assert NO_ROOM in caught.value.found
        world.loadable = True
        with start(world, "two") as two:
            world.executes = False
            for session, words in ((one, "first words"), (two, "second"), (one, "third")):
                world.run_error = words
                with pytest.raises(TkError, match="failed while running") as failed:
                    session.run(IMAGE)
                assert failed.value.found == f"ERROR: {words}"


def test_log__one_logger_that_outlives_its_sessions(make: Make) -> None:
    world = make("10.13")
    start(world, "one").close()
    logger = weakref.ref(world.logger)
    world.fake.calls.clear()
    world.logger = None
    gc.collect()
    kept = logger()
    assert kept is not None, "TensorRT and its plugins still call it"
    kept.log(world.trt.ILogger.Severity.ERROR, "said when nobody works")
    start(world, "two").close()
    assert all(given[0] is kept for given in world.fake.called("init_libnvinfer_plugins"))


def test_log__lines_go_to_the_log_that_began_last(make: Make) -> None:
    world = make("11.4")
    first, second = Log(world.trt), Log(world.trt)
    world.logger = first.logger
    world.say("ERROR", "to the second")
    first.begin()
    world.say("WARNING", "to the first")
    assert list(first.lines) == ["WARNING: to the first"]
    assert second.errors() == ["ERROR: to the second"] and second.text() == "ERROR: to the second"
    second.begin()
    assert second.text() == "TensorRT gave no reason"


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        (NO_ROOM, True),
        ("Error Code 1: Cuda Runtime (out of memory)", True),
        ("CUDA initialization failure with error: 2. Please check your CUDA installation", True),
        ("CUDA initialization failure with error 2. Please check your CUDA installation", True),
        ("CUDA initialization failure with error: 222. Please check", False),
    ],
)
def test_log__words_of_missing_memory(make: Make, line: str, lacks: bool) -> None:
    world = make("10.3")
    log = Log(world.trt)
    world.logger = log.logger
    world.say("ERROR", line)
    assert log.lacks_memory() is lacks
