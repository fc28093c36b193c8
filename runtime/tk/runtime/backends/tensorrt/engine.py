"""A plan in memory: loaded, compared with the manifest, and its execution contexts.

What differs between TensorRT 8.6, 10 and 11 at run time is here: how a context is given memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tk.runtime.backends.tensorrt.cuda import DeviceMemory, Stream, memory_text
from tk.runtime.backends.tensorrt.dtypes import has_type, numpy_name
from tk.runtime.backends.tensorrt.facts import REBUILD
from tk.runtime.backends.tensorrt.library import register_plugins
from tk.runtime.backends.tensorrt.log import Log
from tk.runtime.errors import CheckFailed, EnvironmentLacks, TkError
from tk.runtime.manifest import Part, TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Shapes of one input that the plan was built for.

    Attributes:
        low, high: smallest and largest size of each axis.
    """

    low: Shape
    high: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape lies inside."""
        return len(shape) == len(self.low) and all(
            low <= size <= high for low, size, high in zip(self.low, shape, self.high, strict=True)
        )

    def text(self) -> str:
        """`(1..16, 224, 224, 3)`."""
        pairs = zip(self.low, self.high, strict=True)
        return "(" + ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in pairs) + ")"


def bare_context(trt: Any, engine: Any) -> Any:
    """An execution context without memory to work in; None when TensorRT makes no more of them."""
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is None:  # 8.6
        return getattr(engine, "create_execution_context_without_device_memory")()  # noqa: B009
    make = getattr(engine, "create_execution_context")  # noqa: B009 - 8.6 takes nothing
    return make(strategies.USER_MANAGED)


class Engine:
    """A deserialized plan.

    Args:
        trt: the library.
        data: the plan; whoever calls has checked its hash and `facts.unfit`.
        name: for messages.
        part: what the manifest declares.

    Attributes:
        ranges: input -> shapes that it takes.

    Raises:
        EnvironmentLacks: TensorRT does not start, or lacks GPU memory.
        TkError: TensorRT refuses the plan; with its own words.
        CheckFailed: the plan's inputs or outputs are not those of the manifest.
    """

    def __init__(self, trt: Any, data: bytes, name: str, part: Part) -> None:
        self.trt, self.name, self.log = trt, name, Log(trt)
        for spec in (*part.inputs, *part.outputs):
            if not has_type(trt, spec.dtype):
                raise EnvironmentLacks(
                    f"{name}: TensorRT {trt.__version__} has no {spec.dtype}, the type of "
                    f"{spec.name!r}",
                    fix="use TensorRT 10 or newer, or export this part with int32 inputs",
                )
        register_plugins(trt, self.log.logger)
        runtime = self._start()
        runtime.engine_host_code_allowed = False  # a plan may carry code for the CPU: never run it
        self._runtime: Any = runtime  # must outlive the engine
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            needs = f"about {len(data) / 2**20:,.0f} MiB for its weights, and room to work in"
            raise self._out_of_memory("load", needs) or TkError(
                f"TensorRT {trt.__version__} cannot load {name}", found=self.log.text(), fix=REBUILD
            )
        self._engine: Any = engine
        self._check_tensors(part)
        self.ranges = {spec.name: self._range(spec.name) for spec in part.inputs}

    def _start(self) -> Any:
        trt = self.trt
        try:
            return trt.Runtime(self.log.logger)
        except TypeError as error:  # its factory gave a null pointer
            raise self._out_of_memory("start TensorRT for", "room for CUDA") or EnvironmentLacks(
                f"TensorRT {trt.__version__} does not start, for {self.name}",
                found=self.log.text(),
                fix="tk doctor tells whether driver and libraries belong together",
            ) from error

    def _out_of_memory(self, doing: str, needs: str) -> EnvironmentLacks | None:
        """The error of what TensorRT did not do, if it says that GPU memory lacked."""
        if not self.log.lacks_memory():
            return None
        return EnvironmentLacks(
            f"not enough GPU memory to {doing} {self.name}",
            expected=needs,
            found=f"{memory_text()}\n    {self.log.text()}",
            fix="stop what else uses the GPU, or take a plan of fewer bits: --precision fp16",
        )

    def scratch_bytes(self) -> int:
        """GPU memory that a running context works in."""
        size = getattr(self._engine, "device_memory_size_v2", None)
        if size is None:
            size = getattr(self._engine, "device_memory_size")  # noqa: B009 - gone in TensorRT 11
        return int(size)

    def first_context(self, scratch: DeviceMemory, stream: Stream) -> Any:
        """Make the execution context without which nothing runs; as `new_context`.

        Raises:
            EnvironmentLacks: too little GPU memory.
            TkError: TensorRT makes none for another reason.
        """
        context = self.new_context(scratch, stream)
        if context is None:
            raise self._out_of_memory("run", "room for an execution context") or TkError(
                f"TensorRT makes no execution context of {self.name}", found=self.log.text()
            )
        return context

    def new_context(self, scratch: DeviceMemory, stream: Stream) -> Any:
        """Make an execution context that works in memory of ours.

        All contexts of a session run one after another, so they share one block.

        Returns:
            The context, or None when TensorRT makes no more of them; `log` then says why.
        """
        self.log.begin()
        context = bare_context(self.trt, self._engine)
        if context is None:
            return None
        if context.active_optimization_profile != 0:
            try:
                context.set_optimization_profile_async(0, int(stream.handle))
            except RuntimeError:  # 8.6: another context has it, and this plan does not share it
                return None
        give = getattr(context, "set_device_memory", None)
        if give is None:  # 8.6
            context.device_memory = scratch.address
        else:
            give(scratch.address, scratch.bytes)
        return context

    def close(self) -> None:
        """Free the plan; contexts must be gone."""
        self._engine = None
        self._runtime = None

    def _range(self, tensor: str) -> Range:
        low, _, high = self._engine.get_tensor_profile_shape(tensor, 0)
        return Range(tuple(int(size) for size in low), tuple(int(size) for size in high))

    def _check_tensors(self, part: Part) -> None:
        engine, mode = self._engine, self.trt.TensorIOMode
        found = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        declared = {spec.name: spec for spec in (*part.inputs, *part.outputs)}
        if set(found) != set(declared):
            raise CheckFailed(
                f"{self.name} has other inputs and outputs than its manifest says",
                expected=", ".join(declared),
                found=", ".join(found),
                fix=REBUILD,
            )
        for name, spec in declared.items():
            is_input = engine.get_tensor_mode(name) == mode.INPUT
            if is_input != (spec in part.inputs):
                raise self._other(spec, "an input" if is_input else "an output")
            dtype = numpy_name(engine.get_tensor_dtype(name))
            shape = tuple(int(size) for size in engine.get_tensor_shape(name))
            if dtype != spec.dtype or not _shapes_agree(spec.shape, shape):
                raise self._other(spec, f"{dtype or 'a type without numpy'} {shape}")
            self._check_place(name)

    def _check_place(self, tensor: str) -> None:
        """Refuse a tensor that TensorRT wants in host memory: we give addresses on the GPU."""
        engine, trt = self._engine, self.trt
        on_gpu = engine.get_tensor_location(tensor) == trt.TensorLocation.DEVICE
        if not on_gpu or engine.is_shape_inference_io(tensor):
            raise TkError(
                f"{self.name}: the values of tensor {tensor!r} are sizes of others, which TensorRT "
                "keeps in host memory",
                fix="export the model so that only the shapes of inputs are free, and no output "
                "is a size",
            )

    def _other(self, spec: TensorSpec, found: str) -> CheckFailed:
        return CheckFailed(
            f"{self.name}: tensor {spec.name!r} is not what its manifest says",
            expected=f"{spec.dtype} {spec.shape}",
            found=found,
            fix=REBUILD,
        )


def _shapes_agree(declared: tuple[int | str, ...], found: Shape) -> bool:
    """A free axis is -1 in the plan; a plan built for one batch has its number there."""
    return len(declared) == len(found) and all(
        isinstance(want, str) or size in (want, -1)
        for want, size in zip(declared, found, strict=True)
    )
