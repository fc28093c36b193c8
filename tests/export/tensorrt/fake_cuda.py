"""A stand-in for `cuda.bindings.runtime`, made from its recorded API; memory is host memory.

Every function of the real module exists, only those below do anything. Copies are checked against
what is allocated; recorded work runs when its graph is launched, not before.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.export.tensorrt.tables import cuda_table


class Handle:
    """A stream, graph or event."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.work: list[Callable[[], None]] = []

    def __int__(self) -> int:
        return id(self)


class FakeCuda:
    """State of the pretended GPU.

    Attributes:
        module: put this into `sys.modules["cuda.bindings.runtime"]`.
        free: bytes that can still be taken.
        live: what is held: memory by address, handles by identity.
        recording: the stream's work goes here while a graph is recorded.
        breaks_recording: pretend that the work cannot be recorded.
        instantiates: whether a recorded graph can be made runnable.
        cached: bytes that can be taken though `cudaMemGetInfo` does not count them as free: on a
            Jetson the page cache of the system.
        error_left: whether a call failed and nobody took its error off, as the next one sees it.
        pins: whether host memory can be pinned.
        launches: number of graph launches.
        device: number of the GPU that was chosen last.
    """

    def __init__(self, version: str = "13.5", free: int = 1 << 30) -> None:
        self.free = self.total = free
        self.live: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.breaks_recording = False
        self.pins = self.instantiates = True
        self.error_left = False
        self.cached = 0
        self.launches = self.records = self.device = 0
        self.module = self._make(version)

    def queue(self, work: Callable[[], None]) -> None:
        """Do it now, or when the graph that is being recorded is launched."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def _make(self, version: str) -> ModuleType:
        api = cuda_table(version)
        module = ModuleType("cuda.bindings.runtime")
        for name, members in api["enums"].items():
            setattr(module, name, enum.IntEnum(name, members))
        for name in api["functions"]:
            setattr(module, name, self._remembering(name))
        for name in api["constants"]:
            setattr(module, name, 1)
        self.error: Any = module.cudaError_t
        return module

    def _remembering(self, name: str) -> Callable[..., Any]:
        """A function of the module; like the real ones it leaves its error behind."""
        act = getattr(self, f"_{name}", _not_pretended(name))

        def call(*arguments: Any) -> Any:
            answer = act(*arguments)
            self.error_left |= answer[0] != self.error.cudaSuccess
            return answer

        return call

    def _take(self, size: int) -> tuple[Any, int]:
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        self.live[address], self.sizes[address] = block, size
        return self.error.cudaSuccess, address

    def _cudaMalloc(self, size: int) -> tuple[Any, int]:
        if size > self.free:
            return self.error.cudaErrorMemoryAllocation, 0
        self.free -= size
        return self._take(size)

    def _cudaMallocHost(self, size: int) -> tuple[Any, int]:
        if not self.pins:
            return self.error.cudaErrorMemoryAllocation, 0
        return self._take(size)

    def _cudaFree(self, address: int) -> tuple[Any]:
        self.free += self.sizes[address]
        return self._cudaFreeHost(address)

    def _cudaFreeHost(self, address: int) -> tuple[Any]:
        del self.live[address], self.sizes[address]
        return (self.error.cudaSuccess,)

    def _cudaSetDevice(self, device: int) -> tuple[Any]:
        self.device = device
        return (self.error.cudaSuccess,)

    def _cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return self.error.cudaSuccess, max(0, self.free - self.cached), self.total

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: Any) -> Any:
        def copy() -> None:
            assert size <= self.sizes[to] and size <= self.sizes[source], "copy outside a block"
            ctypes.memmove(to, source, size)

        self.queue(copy)
        return (self.error.cudaSuccess,)

    def _hold(self, kind: str) -> tuple[Any, Handle]:
        handle = Handle(kind)
        self.live[id(handle)] = handle
        return self.error.cudaSuccess, handle

    def _drop(self, handle: Handle) -> tuple[Any]:
        del self.live[id(handle)]
        return (self.error.cudaSuccess,)

    def _cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._hold("stream")

    def _cudaStreamDestroy(self, stream: Handle) -> Any:
        return self._drop(stream)

    def _cudaStreamSynchronize(self, stream: Handle) -> Any:
        assert self.recording is None, "waiting while recording"
        return (self.error.cudaSuccess,)

    def _cudaStreamBeginCapture(self, stream: Handle, mode: Any) -> Any:
        self.recording, self.records = [], self.records + 1
        return (self.error.cudaSuccess,)

    def _cudaStreamEndCapture(self, stream: Handle) -> Any:
        if self.recording is None:
            return self.error.cudaErrorIllegalState, None
        work, self.recording = self.recording, None
        if self.breaks_recording:
            return self.error.cudaErrorStreamCaptureInvalidated, None
        code, graph = self._hold("graph")
        graph.work = work or []
        return code, graph

    def _cudaGetLastError(self) -> Any:
        self.error_left = False
        return (self.error.cudaSuccess,)

    def _cudaGraphInstantiateWithFlags(self, graph: Handle, flags: int) -> Any:
        if not self.instantiates:
            return self.error.cudaErrorMemoryAllocation, None
        code, executable = self._hold("executable graph")
        executable.work = graph.work
        return code, executable

    def _cudaGraphDestroy(self, graph: Handle) -> Any:
        return self._drop(graph)

    def _cudaGraphExecDestroy(self, graph: Handle) -> Any:
        return self._drop(graph)

    def _cudaGraphLaunch(self, graph: Handle, stream: Handle) -> Any:
        self.launches += 1
        for work in graph.work:
            work()
        return (self.error.cudaSuccess,)

    def _cudaEventCreate(self) -> Any:
        return self._hold("event")

    def _cudaEventDestroy(self, event: Handle) -> Any:
        return self._drop(event)

    def _cudaEventRecord(self, event: Handle, stream: Handle) -> Any:
        return (self.error.cudaSuccess,)

    def _cudaEventSynchronize(self, event: Handle) -> Any:
        return (self.error.cudaSuccess,)

    def _cudaEventElapsedTime(self, start: Handle, end: Handle) -> Any:
        return self.error.cudaSuccess, 2.0


def _not_pretended(name: str) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise NotImplementedError(f"the stand-in does not pretend {name}")

    return fail
