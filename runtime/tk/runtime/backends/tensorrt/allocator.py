"""Memory for outputs whose size only the data decides (a number of boxes after suppression)."""

from __future__ import annotations

from typing import Any

from tk.runtime.backends.tensorrt.cuda import DeviceMemory
from tk.runtime.errors import TkError


class OutputMemory:
    """What TensorRT asks for memory and tells the shape of one output, while it runs.

    Attributes:
        allocator: give this to `set_output_allocator`.
        shape: of the last run.
    """

    def __init__(self, trt: Any, name: str) -> None:
        self.name = name
        self.shape: tuple[int, ...] = ()
        self._memory: DeviceMemory | None = None
        self._error: TkError | None = None
        owner = self

        class _Allocator(trt.IOutputAllocator):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output(
                self, tensor_name: str, memory: int, size: int, alignment: int
            ) -> int:
                return owner._grow(size)

            # From 10 on TensorRT asks this one; all our work is on one stream, so it may be taken
            # at once.
            def reallocate_output_async(
                self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
            ) -> int:
                return owner._grow(size)

            def notify_shape(self, tensor_name: str, shape: Any) -> None:
                owner.shape = tuple(int(size) for size in shape)

        self.allocator: Any = _Allocator()

    @property
    def address(self) -> int:
        """Where the output lies on the GPU."""
        return self._memory.address if self._memory else 0

    def check(self) -> None:
        """Raise what went wrong inside TensorRT's call."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Free the memory."""
        if self._memory:
            self._memory.close()
            self._memory = None

    def _grow(self, size: int) -> int:
        try:
            if self._memory is None or self._memory.bytes < size:
                self.close()
                self._memory = DeviceMemory(size, f"output {self.name}")
        except TkError as error:  # an exception must not travel through TensorRT
            self._error = error
            return 0
        return self._memory.address
