"""Memory of a session's tensors: a block on the GPU and a pinned one each, grown on demand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.tensorrt.cuda import DeviceMemory, PinnedMemory, Stream


class TensorMemory:
    """Both blocks of one tensor.

    Attributes:
        name: of the tensor.
        dtype: numpy name.
    """

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self._device: DeviceMemory | None = None
        self._host: PinnedMemory | None = None

    def place(self, shape: tuple[int, ...], *, on_device: bool = True) -> int:
        """Make room for an array of this shape; its address changes only when it has to grow.

        Returns:
            The address on the GPU; 0 when `on_device` is false.
        """
        size = self._size(shape)
        if self._host is None or self._host.bytes < size:
            if self._host:
                self._host.close()
                self._host = None
            self._host = PinnedMemory(size)
        if not on_device:
            return 0
        if self._device is None or self._device.bytes < size:
            if self._device:
                self._device.close()
                self._device = None
            self._device = DeviceMemory(size, f"tensor {self.name} {shape}")
        return self._device.address

    def upload(self, array: NDArray[np.generic], stream: Stream) -> None:
        """Queue the copy of an input; `place` made room for it."""
        assert self._host is not None and self._device is not None
        np.copyto(self._host.view(self.dtype, array.shape), array)
        stream.to_device(self._host.address, self._device.address, array.nbytes)

    def download(self, address: int, shape: tuple[int, ...], stream: Stream) -> None:
        """Queue the copy of an output from the GPU."""
        assert self._host is not None
        stream.to_host(address, self._host.address, self._size(shape))

    def array(self, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """The downloaded output, after the stream was waited for; the caller owns it."""
        assert self._host is not None
        return self._host.view(self.dtype, shape).copy()

    def close(self) -> None:
        """Free both blocks."""
        for block in (self._device, self._host):
            if block is not None:
                block.close()
        self._device = self._host = None

    def _size(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
