"""The little of CUDA that a session needs, through `cuda.bindings`: no PyTorch."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import closing
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import EnvironmentLacks, TkError


def _rt() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EnvironmentLacks(
            f"cuda-python is not there or does not load: {error}",
            fix="pip install 'cuda-python>=12.8,<13' for CUDA 12, 'cuda-python>=13' for CUDA 13",
        ) from error


def check(answer: tuple[Any, ...], doing: str) -> Any:
    """Unwrap what a CUDA call answered: the error code first, then its values.

    Raises:
        TkError: the call failed.
    """
    code, *values = answer
    if int(code) != 0:
        _forget_error()
        raise TkError(f"CUDA failed while {doing}", found=getattr(code, "name", str(code)))
    return values[0] if len(values) == 1 else tuple(values)


def _forget_error() -> None:
    """Take off the error that a failed call left: TensorRT and ONNX Runtime look for one later."""
    _rt().cudaGetLastError()


def use(device: int) -> None:
    """Make a GPU the one of this thread; CUDA keeps its choice per thread, and starts with 0.

    Raises:
        TkError: there is no such GPU.
    """
    check(_rt().cudaSetDevice(device), f"taking GPU {device}")


def memory_info() -> tuple[int, int]:
    """Free memory and all memory of the GPU, bytes."""
    free, total = check(_rt().cudaMemGetInfo(), "asking for free memory")
    return int(free), int(total)


def memory_text() -> str:
    """`64 MiB free of 128 MiB`; on a Jetson without what the page cache would give up.

    Never an error: it is asked when something has failed already.
    """
    try:
        free, total = memory_info()
    except TkError:
        return "CUDA does not tell how much is free"
    return f"{_mib(free)} free of {_mib(total)}"


class _Held:
    """Something of CUDA with a handle that must be given back once."""

    def __init__(self, handle: Any, free: Callable[[Any], tuple[Any, ...]]) -> None:
        self.handle: Any = handle
        self._free = free

    def close(self) -> None:
        """Give it back; twice is harmless. Errors are not raised: the work is done by then."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._free(handle)


class DeviceMemory(_Held):
    """A block of GPU memory.

    Attributes:
        bytes: its size.
    """

    def __init__(self, size: int, purpose: str) -> None:
        rt = _rt()
        self.bytes = max(1, size)
        code, address = rt.cudaMalloc(self.bytes)
        if code == rt.cudaError_t.cudaErrorMemoryAllocation:
            _forget_error()
            raise EnvironmentLacks(
                f"not enough GPU memory for {purpose}",
                expected=f"{_mib(self.bytes)} in one piece",
                found=memory_text(),
                fix="stop what else uses the GPU, lower --batch-size, or export with a smaller "
                "--max-batch",
            )
        check((code,), f"taking {_mib(self.bytes)} of GPU memory for {purpose}")
        super().__init__(int(address), rt.cudaFree)

    @property
    def address(self) -> int:
        """Where it lies on the GPU."""
        return int(self.handle)


class PinnedMemory(_Held):
    """A block of host memory that the GPU copies from and to by itself.

    Attributes:
        bytes: its size.
    """

    def __init__(self, size: int) -> None:
        rt = _rt()
        self.bytes = max(1, size)
        address = check(rt.cudaMallocHost(self.bytes), f"pinning {_mib(self.bytes)} of memory")
        super().__init__(int(address), rt.cudaFreeHost)

    @property
    def address(self) -> int:
        """Where it lies on the host."""
        return int(self.handle)

    def view(self, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """An array over the block; it must not outlive it."""
        count = int(np.prod(shape, dtype=np.int64))
        raw = (ctypes.c_uint8 * self.bytes).from_address(self.address)
        flat: NDArray[np.generic] = np.frombuffer(memoryview(raw), dtype=dtype, count=count)
        return flat.reshape(shape)


class Stream(_Held):
    """A queue of work of its own: the default stream would wait for everybody else's."""

    def __init__(self) -> None:
        rt = _rt()
        made = check(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking), "making a stream")
        super().__init__(made, rt.cudaStreamDestroy)

    def wait(self) -> None:
        """Wait until all queued work is done."""
        check(_rt().cudaStreamSynchronize(self.handle), "running the model")

    def to_device(self, host: int, device: int, size: int) -> None:
        """Queue a copy of `size` bytes from pinned memory."""
        self._copy(device, host, size, _rt().cudaMemcpyKind.cudaMemcpyHostToDevice)

    def to_host(self, device: int, host: int, size: int) -> None:
        """Queue a copy of `size` bytes into pinned memory."""
        self._copy(host, device, size, _rt().cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        if size:
            check(_rt().cudaMemcpyAsync(to, source, size, kind, self.handle), "copying an array")


class Graph(_Held):
    """Recorded work that one call queues again."""

    def __init__(self, recorded: Any) -> None:
        rt = _rt()
        try:
            made = check(rt.cudaGraphInstantiateWithFlags(recorded, 0), "making a CUDA graph")
        finally:
            rt.cudaGraphDestroy(recorded)
        super().__init__(made, rt.cudaGraphExecDestroy)

    def launch(self, stream: Stream) -> None:
        """Queue the recorded work."""
        check(_rt().cudaGraphLaunch(self.handle, stream.handle), "launching a CUDA graph")


def record(stream: Stream, work: Callable[[], None]) -> Graph | None:
    """Record what `work` queues on `stream` instead of running it.

    Returns:
        The graph, or None when the work cannot be recorded (a model that waits for the GPU midway)
        or there is no memory for the graph.
    """
    rt = _rt()
    # Thread-local: another thread's unrelated allocation must not break the recording.
    mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    recorded: Any = None
    try:
        check(rt.cudaStreamBeginCapture(stream.handle, mode), "recording a CUDA graph")
        work()
        recorded = check(rt.cudaStreamEndCapture(stream.handle), "recording a CUDA graph")
        return Graph(recorded)
    except TkError:
        return None
    finally:
        if recorded is None:  # also after Ctrl-C: a stream that still records runs nothing
            _stop_recording(stream)


def _stop_recording(stream: Stream) -> None:
    rt = _rt()
    code, recorded = rt.cudaStreamEndCapture(stream.handle)
    if int(code) == 0:
        rt.cudaGraphDestroy(recorded)
    else:  # as expected when the work has broken the recording
        _forget_error()


class Timer:
    """Time between two points of a stream as the GPU saw it."""

    def __init__(self) -> None:
        rt = _rt()
        self._ends = [
            _Held(check(rt.cudaEventCreate(), "making an event"), rt.cudaEventDestroy)
            for _ in range(2)
        ]

    def mark(self, end: int, stream: Stream) -> None:
        """Queue the start (0) or the end (1) of the span."""
        check(_rt().cudaEventRecord(self._ends[end].handle, stream.handle), "timing")

    def seconds(self) -> float:
        """Wait for the end of the span, and give its length."""
        start, end = (held.handle for held in self._ends)
        check(_rt().cudaEventSynchronize(end), "timing")
        return float(check(_rt().cudaEventElapsedTime(start, end), "timing")) / 1e3

    def __enter__(self) -> Timer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for held in self._ends:
            held.close()


def try_out(device: int) -> None:
    """Do with a few bytes what a session does: memory on both sides, a copy there and back.

    Raises:
        TkError: a call failed, or other numbers came back.
    """
    use(device)
    numbers = np.arange(1, 17, dtype=np.int32)
    with (
        closing(Stream()) as stream,
        closing(DeviceMemory(numbers.nbytes, "a test")) as there,
        closing(PinnedMemory(numbers.nbytes)) as here,
    ):
        view = here.view("int32", numbers.shape)
        view[...] = numbers
        stream.to_device(here.address, there.address, numbers.nbytes)
        stream.wait()
        view[...] = 0
        stream.to_host(there.address, here.address, numbers.nbytes)
        stream.wait()
        if not np.array_equal(view, numbers):
            raise TkError("other numbers came back from it")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.{0 if size >= 10 << 20 else 2}f} MiB"
