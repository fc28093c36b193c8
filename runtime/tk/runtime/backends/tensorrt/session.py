"""TensorRT on an NVIDIA GPU: one class for 8.6, 10 and 11, named tensors only."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.allocator import OutputMemory
from tk.runtime.backends.tensorrt.buffers import TensorMemory
from tk.runtime.backends.tensorrt.cuda import DeviceMemory, Stream, Timer, use
from tk.runtime.backends.tensorrt.engine import Engine, Shape
from tk.runtime.backends.tensorrt.facts import REBUILD, unfit
from tk.runtime.backends.tensorrt.lane import Lane
from tk.runtime.backends.tensorrt.log import warn
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.machine import platform_name
from tk.runtime.manifest import Part

NAME = "tensorrt"

LANES = 8
"""Shapes that keep a context and a graph of their own; the one used longest ago goes first."""


def missing() -> str:
    """Say what this machine lacks to run this back end, "" when nothing."""
    return library.missing()


def refusal(facts: Mapping[str, Any], device: int = 0) -> str:
    """Say why a plan with these facts cannot run here, "" when it can; loads no plan."""
    if lack := missing():
        return lack
    try:
        reason = _choose(facts, device)[1]
    except EnvironmentLacks as error:
        return error.what
    return f"{reason}; {REBUILD}" if reason else ""


def open_session(
    data: bytes,
    name: str,
    precision: str,
    part: Part,
    threads: int,
    weights: Mapping[str, bytes] | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    device: int = 0,
) -> Session:
    """Load a plan from bytes that were already checked.

    Args:
        data: a plan.
        threads, weights: of other back ends; a plan uses neither.
        facts: of the artifact, from the manifest: what the plan was built for. Without them it is
            not loaded.
        device: number of the GPU.

    Raises:
        EnvironmentLacks: no GPU, no TensorRT, too little GPU memory.
        CheckFailed: the plan is for another TensorRT or GPU, or not what the manifest says.
        TkError: TensorRT refuses the plan.
    """
    if lack := missing():
        raise EnvironmentLacks(f"cannot run {name}", found=lack)
    trt, reason = _choose(facts or {}, device)
    if trt is None:
        raise CheckFailed(f"{name} is not loaded: {reason}", fix=REBUILD)
    gpu = library.the_gpu(device)
    built_on = (facts or {}).get("gpu")
    if built_on not in (None, gpu.name):
        warn(f"{name} was built on {built_on}, here is {gpu.name}: a plan built here may be faster")
    return TensorRTSession(trt, data, name, precision, part, device=device)


def _choose(facts: Mapping[str, Any], device: int) -> tuple[Any, str]:
    """The installed TensorRT that fits a plan, or None and why not.

    Raises:
        EnvironmentLacks: no such GPU, or none fits and one of them is broken: it might.
    """
    gpu = library.the_gpu(device)
    reasons, broken = [], None
    for name in library.installed():
        try:
            trt = library.load(name)
        except EnvironmentLacks as error:
            broken = broken or error
            continue
        reason = unfit(facts, name, trt.__version__, gpu, platform_name())
        if not reason:
            return trt, ""
        reasons.append(reason)
    if broken is not None:
        raise broken
    return None, "; ".join(dict.fromkeys(reasons))


class TensorRTSession(Session):
    """A plan with its own stream, pinned buffers, and a CUDA graph per shape.

    The first run of a shape goes through one context for all; a shape that comes again gets a
    context of its own, which from its second run on is one launch of a graph. So a part that sees
    every number of boxes once does not pay for hundreds of graphs.

    Not for two threads at once, nor two sessions of one process: a session has one stream and one
    block to work in, and all of them share TensorRT's one logger.

    Args:
        graphs: whether to record CUDA graphs.
        device: number of the GPU.
    """

    def __init__(
        self,
        trt: Any,
        data: bytes,
        name: str,
        precision: str,
        part: Part,
        *,
        graphs: bool = True,
        device: int = 0,
    ) -> None:
        super().__init__(name, NAME, precision, part)
        self._device = device
        use(device)
        self._graphs = graphs
        self._seen: Counter[tuple[tuple[str, Shape], ...]] = Counter()
        self._lanes: OrderedDict[tuple[tuple[str, Shape], ...], Lane] = OrderedDict()
        self._memory = {
            spec.name: TensorMemory(spec.name, spec.dtype) for spec in (*part.inputs, *part.outputs)
        }
        self._grown: dict[str, OutputMemory] = {}
        self._shared: Lane | None = None
        self._scratch: DeviceMemory | None = None
        self._stream: Stream | None = None
        self._engine = Engine(trt, data, name, part)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        # Taken, not asked for: on a Jetson more can be had than CUDA calls free.
        self._stream = Stream()
        self._scratch = DeviceMemory(self._engine.scratch_bytes(), f"the work of {self.name}")
        context = self._engine.first_context(self._scratch, self._stream)
        self._shared = Lane(context, self.name, self._engine.log, graphs=False)

    def __enter__(self) -> TensorRTSession:
        return self

    @property
    def graph_count(self) -> int:
        """CUDA graphs that are recorded now."""
        return sum(lane.recorded for lane in self._lanes.values())

    def gpu_seconds(self, inputs: Mapping[str, NDArray[np.generic]], repeats: int) -> list[float]:
        """Time the model alone, without copies, by CUDA events.

        Args:
            inputs: as for `run`.
            repeats: how often.

        Returns:
            Seconds of each run.
        """
        for _ in range(3):  # shared context, own context, recorded graph
            self.run(inputs)
        lane, stream = self._ready(inputs), self._stream
        assert stream is not None
        with Timer() as timer:
            seconds = []
            for _ in range(repeats):
                timer.mark(0, stream)
                lane.execute(stream)
                timer.mark(1, stream)
                seconds.append(timer.seconds())
        return seconds

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        use(self._device)  # another thread than that which opened the session may run it
        self._engine.log.begin()
        lane, stream = self._ready(inputs), self._stream
        assert stream is not None
        for name, array in inputs.items():
            self._memory[name].upload(array, stream)
        try:
            lane.execute(stream)
        finally:
            for output in self._grown.values():
                output.check()
        return self._collect(stream)

    def _ready(self, inputs: Mapping[str, NDArray[np.generic]]) -> Lane:
        """Choose a context for these shapes and make room for all its tensors."""
        shapes = {name: array.shape for name, array in inputs.items()}
        self._check_ranges(shapes)
        lane = self._lane(shapes)
        self._outputs = lane.bind(shapes, [spec.name for spec in self.part.outputs])
        for name, shape in {**shapes, **self._outputs}.items():
            if min(shape, default=1) < 0:
                self._grow(lane, name)
            else:
                lane.place(name, self._memory[name].place(shape))
        return lane

    def _collect(self, stream: Stream) -> Arrays:
        shapes = dict(self._outputs)
        for name in [name for name, shape in shapes.items() if min(shape, default=1) < 0]:
            stream.wait()  # only then the shape is known
            shapes[name] = self._grown[name].shape
            self._memory[name].place(shapes[name], on_device=False)
            self._memory[name].download(self._grown[name].address, shapes[name], stream)
        for name, shape in self._outputs.items():
            if min(shape, default=1) >= 0:
                self._memory[name].download(self._memory[name].place(shape), shape, stream)
        stream.wait()
        return {name: self._memory[name].array(shape) for name, shape in shapes.items()}

    def _check_ranges(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            allowed = self._engine.ranges[name]
            if not allowed.holds(shape):
                raise TkError(
                    f"{self.name}: input {name!r} is outside of what the plan was built for",
                    expected=allowed.text(),
                    found=str(shape),
                    fix=f"give at most {allowed.high[0]} rows at once (--batch-size), or export "
                    "with a larger --max-batch",
                )

    def _lane(self, shapes: Mapping[str, Shape]) -> Lane:
        assert self._shared is not None
        key = tuple(sorted(shapes.items()))
        self._seen[key] += 1
        if key in self._lanes:
            self._lanes.move_to_end(key)
            return self._lanes[key]
        if not self._graphs or self._grown or self._seen[key] < 2:
            return self._shared
        if len(self._lanes) == LANES:
            self._drop_oldest()
        context = self._own_context()
        if context is None:  # also a plan of 8.6 that does not share its profile
            self._graphs = False
            return self._shared
        self._lanes[key] = Lane(context, self.name, self._engine.log, graphs=True)
        return self._lanes[key]

    def _own_context(self) -> Any:
        """A context for one shape; where memory lacks it takes the place of older ones."""
        assert self._scratch is not None and self._stream is not None
        while True:
            context = self._engine.new_context(self._scratch, self._stream)
            if context is not None or not self._lanes or not self._engine.log.lacks_memory():
                return context
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._lanes.popitem(last=False)[1].close()

    def _grow(self, lane: Lane, name: str) -> None:
        if name not in self._grown:
            self._grown[name] = OutputMemory(self._engine.trt, name)
            lane.allocate(name, self._grown[name].allocator)

    def _close(self) -> None:
        with contextlib.suppress(TkError):  # a broken GPU: what is freed below is lost anyway
            use(self._device)
        lanes = [*self._lanes.values(), *([self._shared] if self._shared else [])]
        for lane in lanes:
            lane.close()
        self._lanes.clear()
        self._shared = None
        self._engine.close()
        held = [*self._grown.values(), *self._memory.values(), self._scratch, self._stream]
        for item in held:
            if item is not None:
                item.close()
