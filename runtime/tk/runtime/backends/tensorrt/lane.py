"""One execution context at one shape: runs directly, then as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tk.runtime.backends.tensorrt.cuda import Graph, Stream, record
from tk.runtime.backends.tensorrt.engine import Shape
from tk.runtime.backends.tensorrt.log import Log
from tk.runtime.errors import TkError


class Lane:
    """A context with its shapes, addresses and recorded graph.

    Args:
        context: of TensorRT.
        name: of the session, for messages.
        log: what TensorRT said.
        graphs: whether to record; a graph is bound to one shape and to its addresses, and the
            context's own state with it, so a lane that changes shapes has none.
    """

    def __init__(self, context: Any, name: str, log: Log, *, graphs: bool) -> None:
        self._context: Any = context
        self._name, self._log = name, log
        self._graphs = graphs
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._graph: Graph | None = None
        self._warm = False

    @property
    def recorded(self) -> bool:
        """Whether the next run is one launch of a graph."""
        return self._graph is not None

    def bind(self, shapes: Mapping[str, Shape], outputs: list[str]) -> dict[str, Shape]:
        """Set the shapes of inputs.

        Returns:
            Shape per output, with -1 where only the data decides.

        Raises:
            TkError: TensorRT does not take the shapes; they are set anew the next time.
        """
        context = self._context
        if self._shapes != shapes:
            self._forget()
            self._shapes = {}  # when a step below fails, the context has some of both
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self._failed(f"TensorRT takes no {name!r} of shape {shape}")
            self._infer(shapes)
            self._shapes = dict(shapes)
        return {name: tuple(int(s) for s in context.get_tensor_shape(name)) for name in outputs}

    def place(self, name: str, address: int) -> None:
        """Tell where a tensor lies; a graph of another address is dropped."""
        context = self._context
        if self._addresses.get(name) != address:
            self._forget()
            if not context.set_tensor_address(name, address):
                raise self._failed(f"TensorRT takes no address of {name!r}")
            self._addresses[name] = address

    def allocate(self, name: str, allocator: Any) -> None:
        """Let an allocator of ours give the memory of an output."""
        context = self._context
        if not context.set_output_allocator(name, allocator):
            raise self._failed(f"TensorRT takes no allocator of {name!r}")

    def execute(self, stream: Stream) -> None:
        """Queue one run."""
        if self._graph is None and self._graphs and self._warm:
            # The first run sets up what a graph may not contain, so it is never recorded.
            self._graph = record(stream, lambda: self._enqueue(stream))
            if self._graph is None:  # once is enough, and its errors are not those of the run
                self._graphs = False
                self._log.begin()
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._enqueue(stream)
            self._warm = True

    def close(self) -> None:
        """Free graph and context."""
        self._forget()
        self._context = None

    def _infer(self, shapes: Mapping[str, Shape]) -> None:
        context = self._context
        try:
            unset = context.infer_shapes()
        except RuntimeError as error:  # "infer_shapes error code: -1"
            text = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
            raise self._failed(f"TensorRT takes no inputs of shapes {text}") from error
        if unset:
            raise self._failed(f"TensorRT lacks the shapes of {', '.join(unset)}")

    def _enqueue(self, stream: Stream) -> None:
        context = self._context
        if not context.execute_async_v3(int(stream.handle)):
            raise self._failed("TensorRT failed while running")

    def _forget(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._warm = False

    def _failed(self, what: str) -> TkError:
        return TkError(f"{self._name}: {what}", found=self._log.text())
