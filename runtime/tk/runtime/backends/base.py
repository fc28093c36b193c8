"""A session: a loaded graph or plan. Named arrays in, named arrays out.

The base owns the checks, the timing and the closing; a back end overrides `_run` and `_close`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.manifest import Part, TensorSpec

Arrays = dict[str, NDArray[np.generic]]


class Session(ABC):
    """One part of a model, ready to run on one back end.

    Attributes:
        name: for messages, e.g. `detector/model.fp32.onnx`.
        backend: the back end and device, e.g. `onnxruntime-cpu`.
        precision: what the loaded file holds.
        part: declared inputs and outputs.
        why: one line, why this file on this back end was taken; "" when somebody opened it by hand.
        seconds: time spent inside the back end so far.
        cpu_seconds: CPU time of the process in that time, all threads.
        calls: how often it ran.
    """

    def __init__(self, name: str, backend: str, precision: str, part: Part) -> None:
        self.name, self.backend, self.precision, self.part = name, backend, precision, part
        self.why = ""
        self.seconds, self.cpu_seconds, self.calls = 0.0, 0.0, 0
        self._open = True

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run the model once.

        Args:
            inputs: one array per declared input; free axes of one name have one size.

        Returns:
            One array per declared output; the caller owns them.

        Raises:
            TkError: a name, dtype or shape differs from the manifest, or the session is closed.
        """
        if not self._open:
            raise TkError(f"session {self.name} is closed")
        check_arrays(self.name, self.part.inputs, inputs)
        cpu, started = time.process_time(), time.perf_counter()
        outputs = self._run(inputs)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu
        self.calls += 1
        return outputs

    def close(self) -> None:
        """Free the engine; closing twice is harmless."""
        if self._open:
            self._open = False
            self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run with checked inputs."""

    @abstractmethod
    def _close(self) -> None:
        """Free what the back end holds."""


def check_arrays(
    name: str, specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[np.generic]]
) -> None:
    """Compare arrays with their specs: names, dtypes, ranks, fixed sizes, equal free sizes.

    Raises:
        TkError: with the tensor, what was expected and what was found.
    """
    wanted, given = [spec.name for spec in specs], list(arrays)
    if set(wanted) != set(given):
        raise TkError(
            f"{name}: wrong set of inputs",
            expected=", ".join(wanted),
            found=", ".join(given) or "none",
        )
    free: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        if array.dtype != np.dtype(spec.dtype) or not _shape_fits(spec.shape, array.shape, free):
            bound = {axis: size for axis, size in free.items() if axis in spec.shape}
            raise TkError(
                f"{name}: input {spec.name!r} does not fit",
                expected=f"{spec.dtype} {_shape_text(spec.shape)}"
                + (f" with {bound}" if bound else ""),
                found=f"{array.dtype} {_shape_text(array.shape)}",
            )


def _shape_fits(
    wanted: tuple[int | str, ...], found: tuple[int, ...], free: dict[str, int]
) -> bool:
    if len(wanted) != len(found):
        return False
    return all(
        size == (free.setdefault(axis, size) if isinstance(axis, str) else axis)
        for axis, size in zip(wanted, found, strict=True)
    )


def _shape_text(shape: tuple[int | str, ...] | tuple[int, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
