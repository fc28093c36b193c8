"""A pretended machine: a GPU, CUDA, and a TensorRT of some version that builds and runs `2 x`."""

from __future__ import annotations

import ctypes
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from tests.export.tensorrt.fake_cuda import FakeCuda
from tests.export.tensorrt.fake_trt import Behaviour, Fake

from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.dtypes import NUMPY_OF
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.manifest import Part, TensorSpec

GPU = Gpu("NVIDIA H200", (9, 0), 1 << 30, (13, 0))
PART = Part(
    (TensorSpec("image", "uint8", ("B", 4)),), (TensorSpec("embedding", "float32", ("B", 4)),), 16
)


def world_maker(patch: pytest.MonkeyPatch) -> Callable[..., World]:
    """What makes and installs worlds: `make("10.13", free=64 << 20, loadable=False)`."""

    def make(version: str, **values: Any) -> World:
        world = World(version, free=values.pop("free", 1 << 30))
        for name, value in values.items():
            setattr(world, name, value)
        world.install(patch)
        return world

    return make


def half_json(version: str, words: tuple[str, str] = ("Half", "Float")) -> str:
    """Inspector JSON of one half and one float layer, in the dialect of a version."""
    layers = []
    for index, word in enumerate(words):
        long = {"Half": "FP16", "Float": "FP32", "Int8": "Int8"}[word]
        tensor = {"Name": f"t{index}", "Dimensions": [1, 4]}
        if version.startswith("11"):
            tensor |= {"Format": "Row major linear", "Datatype": word}
        elif version == "8.6":
            tensor |= {"Format/Datatype": f"Row major linear {long} format"}
        else:
            tensor |= {"Format/Datatype": word}
        layers.append({"Name": f"conv{index}", "LayerType": "CaskConvolution", "Inputs": [tensor]})
    ends = {"I/O Tensors": [{"Name": "x"}]} if version.startswith("11") else {"Bindings": ["x"]}
    return json.dumps({"Layers": layers, **ends})


@dataclass(frozen=True)
class Layer:
    """A layer of a parsed network.

    Attributes:
        name: of the layer.
        gives: name of its output.
        kind, reads: members of DataType, of its output and its input.
        type: member of LayerType.
    """

    name: str
    gives: str
    kind: str = "FLOAT"
    reads: str = "FLOAT"
    type: str = "ELEMENTWISE"


class World:
    """What happens is decided by its attributes; see their defaults.

    Attributes:
        spec: tensor -> (is input, member of DataType, shape with -1, low, high).
        layers: of the parsed network.
        parsed: graphs that the parser was given as bytes.
        log: (severity, text) that the build says.
        width: numbers of one row, in and out.
        builds: whether a build gives a plan.
        obeys: whether it has kernels for all layers that must be float32 (8.6).
        loadable: whether a plan can be loaded.
        load_error: what is said when it cannot.
        data_dependent: the output's rows are those with a positive sum.
        executes: whether a context runs; `run_error` is said when it does not.
        logger: the first that TensorRT was ever given; like the real one, it uses no other.
        refused_rows: numbers of rows that shapes cannot be inferred for.
        host: tensors that TensorRT keeps in host memory.
        starts: whether a runtime can be made; `start_error` is said when it cannot.
        room: contexts that fit into memory; no more are made.
        shares_profile: whether a second context may take the first one's profile.
        recordable: whether a context can run while a graph is recorded.
        running: called when a context is told to run.
        phases: steps of a build's outermost phase.
    """

    def __init__(self, version: str, free: int = 1 << 30) -> None:
        self.version = version
        self.cuda = FakeCuda(free=free)
        self.inspector = half_json(version)
        self.spec: dict[str, tuple[bool, str, tuple[int, ...]]] = {
            "image": (True, "UINT8", (-1, 4)),
            "embedding": (False, "FLOAT", (-1, 4)),
        }
        self.gpus = [GPU]
        self.high, self.width = 16, 4
        self.layers = [Layer("conv", "conv_out"), Layer("norm", "norm_out")]
        self.parsed: list[onnx.ModelProto] = []
        self.log: list[tuple[str, str]] = []
        self.parser_errors: list[str] = []
        self.builds = self.loadable = self.obeys = True
        self.load_error = "magic tag does not match"
        self.data_dependent = False
        self.executes = True
        self.run_error = "an illegal instruction was encountered"
        self.logger: Any = None
        self.shares_profile = self.starts = self.recordable = True
        self.start_error = "CUDA initialization failure with error: 2. Please check your CUDA"
        self.refused_rows: set[int] = set()
        self.host: set[str] = set()
        self.room = 99
        self.running: Callable[[], None] = lambda: None
        self.phases = 4
        self.scratch = 1000
        self.contexts = 0
        self.made: list[weakref.ref[Any]] = []
        self.during: Callable[[], None] = lambda: None
        self.fake = Fake(version, self._behaviour())
        self.trt: Any = self.fake.module

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the pretended modules and the GPU where ours look for them."""
        name = "tensorrt_lean" if self.version.startswith("lean") else "tensorrt"
        patch.setitem(sys.modules, name, self.trt)
        patch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda.module)
        patch.setattr(library, "find_gpus", lambda: self.gpus)
        patch.setattr(library, "installed", lambda: [name])
        patch.setattr(library, "cuda_python", lambda: True)

    def _behaviour(self) -> Behaviour:
        return {
            ("Builder", "__init__"): self._builder,
            ("Builder", "build_serialized_network"): self._build,
            ("OnnxParser", "parse_from_file"): lambda parser, file: not self.parser_errors,
            ("OnnxParser", "get_error"): self._parser_error,
            ("INetworkDefinition", "get_layer"): lambda network, index: network.layers[index],
            ("Builder", "create_network"): self._network,
            ("OnnxParser", "__init__"): self._parser,
            ("OnnxParser", "parse"): self._parse,
            ("ILayer", "get_output"): lambda layer, index: layer.output,
            ("ILayer", "get_input"): lambda layer, index: layer.input,
            ("ILayer", "set_output_type"): lambda layer, i, t: layer.__dict__.update(bound=t),
            ("IBuilderConfig", "set_flag"): lambda config, flag: _flags(config).add(flag.name),
            ("IBuilderConfig", "clear_flag"): lambda c, flag: _flags(c).discard(flag.name),
            ("IBuilderConfig", "create_timing_cache"): self._new_cache,
            ("IBuilderConfig", "set_timing_cache"): self._set_cache,
            ("IBuilderConfig", "get_timing_cache"): lambda config: config.__dict__.get("cache"),
            ("ITimingCache", "combine"): self._combine,
            ("ITimingCache", "serialize"): lambda cache: self._memory(cache.content),
            ("Runtime", "__init__"): self._runtime,
            ("Runtime", "deserialize_cuda_engine"): self._load,
            ("ICudaEngine", "create_engine_inspector"): self._new("EngineInspector"),
            ("EngineInspector", "get_engine_information"): lambda i, form: self.inspector,
            ("ICudaEngine", "get_tensor_name"): lambda engine, index: list(self.spec)[index],
            ("ICudaEngine", "get_tensor_mode"): self._mode,
            ("ICudaEngine", "get_tensor_dtype"): self._dtype,
            ("ICudaEngine", "get_tensor_shape"): lambda engine, name: self.spec[name][2],
            ("ICudaEngine", "get_tensor_profile_shape"): self._ranges,
            ("ICudaEngine", "is_shape_inference_io"): lambda engine, name: False,
            ("ICudaEngine", "get_tensor_location"): self._location,
            ("ICudaEngine", "create_execution_context"): self._context,
            ("ICudaEngine", "create_execution_context_without_device_memory"): self._context,
            ("IExecutionContext", "set_input_shape"): self._set_shape,
            ("IExecutionContext", "set_optimization_profile_async"): self._set_profile,
            ("IExecutionContext", "infer_shapes"): self._infer,
            ("IExecutionContext", "get_tensor_shape"): self._shape,
            ("IExecutionContext", "set_tensor_address"): self._address,
            ("IExecutionContext", "set_output_allocator"): self._allocator,
            ("IExecutionContext", "execute_async_v3"): self._execute,
        }

    def _new(self, name: str) -> Callable[..., Any]:
        return lambda *_: self.fake.new(name)

    def _memory(self, content: bytes) -> Any:
        return self.fake.new("IHostMemory", content=content)

    def say(self, severity: str, text: str) -> None:
        """Log a line."""
        self.logger.log(self.trt.ILogger.Severity[severity], text)

    def _hear(self, logger: Any) -> None:
        self.logger = self.logger or logger

    def _builder(self, builder: Any, logger: Any) -> None:
        self._hear(logger)

    def _network(self, builder: Any, flags: int = 0) -> Any:
        return self.fake.new("INetworkDefinition", creation=flags, layers=[])

    def _parser(self, parser: Any, network: Any, logger: Any) -> None:
        parser.__dict__["num_errors"] = len(self.parser_errors)
        network.layers.extend(self._layer(layer) for layer in self.layers)
        network.__dict__["num_layers"] = len(self.layers)

    def _parse(self, parser: Any, data: bytes, path: str) -> bool:
        self.parsed.append(onnx.load_model_from_string(data))
        return not self.parser_errors

    def _layer(self, layer: Layer) -> Any:
        def tensor(kind: str, name: str = "") -> Any:
            dtype = self.trt.DataType[kind]
            return self.fake.new("ITensor", name=name, dtype=dtype, is_shape_tensor=False)

        return self.fake.new(
            "ILayer",
            name=layer.name,
            type=self.trt.LayerType[layer.type],
            num_inputs=1,
            num_outputs=1,
            input=tensor(layer.reads),
            output=tensor(layer.kind, layer.gives),
        )

    def _parser_error(self, parser: Any, index: int) -> Any:
        error = self.fake.new("ParserError")
        error.__dict__.update(node=lambda: 7, desc=lambda: self.parser_errors[index])
        return error

    def _build(self, builder: Any, network: Any, config: Any) -> Any:
        for severity, text in self.log:
            self.say(severity, text)
        self.network, self.config = network, config
        self.during()
        monitor = config.__dict__.get("progress_monitor")
        if monitor:
            monitor.phase_start("Building Engine", None, self.phases)
            for step in range(self.phases):
                if not monitor.step_complete("Building Engine", step):
                    return None
            monitor.phase_finish("Building Engine")
        cache = config.__dict__.get("cache")
        if cache is not None:
            cache.__dict__["content"] += b"+"
        obeys = self.obeys or "OBEY_PRECISION_CONSTRAINTS" not in _flags(config)
        return self._memory(b"PLAN") if self.builds and obeys else None

    def _new_cache(self, config: Any, data: bytes) -> Any:
        return None if data == b"broken" else self.fake.new("ITimingCache", content=data)

    def _set_cache(self, config: Any, cache: Any, ignore: bool) -> bool:
        config.__dict__["cache"] = cache
        return not ignore

    def _combine(self, cache: Any, other: Any, ignore: bool) -> bool:
        cache.__dict__["content"] += b"|" + other.content
        return True

    def _runtime(self, runtime: Any, logger: Any) -> None:
        self._hear(logger)
        if not self.starts:
            self.say("WARNING", self.start_error)
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.runtime = runtime

    def _load(self, runtime: Any, data: bytes) -> Any:
        if not self.loadable:
            self.say("ERROR", self.load_error)
            return None
        sizes = {"num_io_tensors": len(self.spec), "num_optimization_profiles": 1}
        memory = {"device_memory_size": self.scratch, "device_memory_size_v2": self.scratch}
        known = self.fake.api["classes"]["ICudaEngine"]["attributes"]
        return self.fake.new(
            "ICudaEngine", **sizes, **{key: v for key, v in memory.items() if key in known}
        )

    def _mode(self, engine: Any, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if self.spec[name][0] else modes.OUTPUT

    def _dtype(self, engine: Any, name: str) -> Any:
        return self.trt.DataType[self.spec[name][1]]

    def _ranges(self, engine: Any, name: str, profile: int) -> list[tuple[int, ...]]:
        shape = self.spec[name][2]
        return [tuple(n if s == -1 else s for s in shape) for n in (1, self.high, self.high)]

    def _location(self, engine: Any, name: str) -> Any:
        return self.trt.TensorLocation["HOST" if name in self.host else "DEVICE"]

    def _context(self, engine: Any, strategy: Any = None) -> Any:
        alive = sum(context() is not None for context in self.made)
        if alive >= self.room:
            self.say("ERROR", "Error Code 2: OutOfMemory (no further information)")
            return None
        self.contexts += 1
        # A plan that does not share it gives its one profile to the first context.
        profile = 0 if self.shares_profile or not alive else -1
        values: dict[str, Any] = {"shapes": {}, "places": {}, "allocators": {}}
        made = self.fake.new("IExecutionContext", active_optimization_profile=profile, **values)
        self.made.append(weakref.ref(made))
        return made

    def _set_profile(self, context: Any, index: int, stream: int) -> bool:
        if not self.shares_profile:
            raise RuntimeError("Error in set optimization profile.")
        return True

    def _infer(self, context: Any) -> list[str]:
        if context.shapes["image"][0] in self.refused_rows:
            self.say("ERROR", "dimensions do not fit")
            raise RuntimeError("infer_shapes error code: -1")
        return []

    def _set_shape(self, context: Any, name: str, shape: tuple[int, ...]) -> bool:
        context.shapes[name] = shape
        return True

    def _shape(self, context: Any, name: str) -> tuple[int, ...]:
        if self.spec[name][0]:
            shape: tuple[int, ...] = context.shapes[name]
            return shape
        rows = -1 if self.data_dependent else context.shapes["image"][0]
        return (rows, self.width)

    def _address(self, context: Any, name: str, address: int) -> bool:
        context.places[name] = address
        return True

    def _allocator(self, context: Any, name: str, allocator: Any) -> bool:
        context.allocators[name] = allocator
        return True

    def _execute(self, context: Any, stream: int) -> bool:
        # What a graph records: the addresses and shapes of this moment.
        places, rows = dict(context.places), context.shapes["image"][0]

        def run() -> None:
            numbers = self._array("image", places["image"], (rows, self.width))
            answer = (numbers * 2).astype(NUMPY_OF[self.spec["embedding"][1]])
            if self.data_dependent:
                answer = answer[answer.sum(1) > 0]
                allocator = context.allocators["embedding"]
                ask = allocator.reallocate_output_async
                if self.version == "8.6":
                    ask = lambda *all_but_stream: allocator.reallocate_output(*all_but_stream[:4])  # noqa: E731
                places["embedding"] = ask("embedding", 0, max(1, answer.nbytes), 256, stream)
                if places["embedding"]:
                    allocator.notify_shape("embedding", answer.shape)
            if places["embedding"]:
                self._array("embedding", places["embedding"], answer.shape)[...] = answer

        self.running()
        if self.cuda.recording is not None and not self.recordable:
            self.say("ERROR", "operation not permitted when stream is capturing")
            return False
        if not self.executes:
            self.say("ERROR", self.run_error)
        self.cuda.queue(run)
        return self.executes

    def _array(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(NUMPY_OF[self.spec[name][1]])
        size = int(np.prod(shape)) * dtype.itemsize
        assert size <= self.cuda.sizes[address], "the model writes outside its block"
        raw = (ctypes.c_uint8 * max(1, size)).from_address(address)
        return np.frombuffer(memoryview(raw)[:size], dtype=dtype).reshape(shape)


def _flags(config: Any) -> set[str]:
    found: set[str] = config.__dict__.setdefault("set_flags", {"TF32"})
    return found
