"""ONNX graph -> TensorRT plan, whose precision was read from it; one path for 8.6, 10 and 11."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tk.export.tensorrt import flags, timing_cache
from tk.export.tensorrt.adapt import adapt
from tk.export.tensorrt.inspect import Found, check_found, inspect
from tk.export.tensorrt.known_bad import check_known_bad
from tk.export.tensorrt.options import BuildOptions
from tk.export.tensorrt.precision import WEAK, check_gpu, check_graph, set_weak_types
from tk.export.tensorrt.progress import STEPS, make_monitor, stoppable
from tk.export.tensorrt.traits import find_traits
from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.dtypes import has_type
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.backends.tensorrt.log import Log, warn
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.files import sha256_file
from tk.runtime.machine import platform_name
from tk.runtime.manifest import Artifact, Part, TensorSpec
from tk.runtime.progress import progress

FOLDER = "plans"

PLUGINS = frozenset({"RoiAlign"})
"""Operators that the parser gives to plugins that come with TensorRT."""

USUAL = 32
"""Size of free axes other than the batch that tactics are timed at: tokens of eleven tools."""


@dataclass(frozen=True)
class Plan:
    """A finished plan.

    Attributes:
        data: the serialized engine.
        artifact: what the manifest says of it.
        warnings: of the table of known-bad pairs, and what could not be kept in float32.
    """

    data: bytes
    artifact: Artifact
    warnings: list[str] = field(default_factory=list)


def plan_file(part: str, precision: str, version: str, gpu: Gpu) -> str:
    """Where a plan lies in its bundle: `plans/model.fp16.trt10.13-sm90.plan`."""
    numbers = ".".join(str(number) for number in library.parse_version(version)[:2])
    return f"{FOLDER}/{part}.{precision}.trt{numbers}-{gpu.sm}.plan"


def build_plan(
    graph: Path,
    part: Part,
    part_name: str,
    options: BuildOptions,
    source: Mapping[str, Any] | None = None,
) -> Plan:
    """Build a plan for the GPU of this machine and read its precision from it.

    Args:
        graph: ONNX file, its weights beside it if it has such a file. For TensorRT 10 and newer
            at the precision of the options, for 8.6 in float32 (int8: with Q/DQ nodes).
        part: declared inputs and outputs.
        part_name: name of the part.
        options: how to build.
        source: of the manifest, for the table of known-bad pairs.

    Raises:
        EnvironmentLacks: no GPU, no TensorRT, too little GPU memory, or a precision that the GPU
            does not compute in.
        TkError: TensorRT refuses the graph; with the lines that it logged. Or the options ask for
            what this graph cannot have.
        CheckFailed: the plan does not run at the precision that was asked for.
        KeyboardInterrupt: Ctrl-C, once TensorRT has stopped; nothing was written.
    """
    gpu, trt = library.the_gpu(), library.load()
    version = str(trt.__version__)
    check_gpu(options.precision, gpu)
    _check_types(trt, part)
    content = onnx.load(graph, load_external_data=False)
    typing = check_graph(trt, content, options)
    check_plugins(content, options)
    traits = find_traits(content, source or {}, options, gpu)
    warnings = check_known_bad(version, traits, part_name)
    file = plan_file(part_name, options.precision, version, gpu)
    started = time.monotonic()
    float_bytes = _float_bytes(content)
    build = _Build(trt, gpu, graph, content, part, options, typing)
    data, found = build.run(file, float_bytes)
    facts = {
        "tensorrt": version,
        "platform": platform_name(),
        "sm": gpu.sm,
        "gpu": gpu.name,
        "cuda_driver": ".".join(str(number) for number in gpu.driver),
        "graph": graph.name,
        "graph_sha256": sha256_file(graph),
        "typing": typing,
        "batch": [1, options.optimum, options.max_batch],
        "level": options.level,
        "hardware": options.hardware,
        "version_compatible": options.version_compatible,
        "tf32": options.tf32,
        "workspace": options.workspace,
        "kept_in_float32": list(options.keep),
        "found": found.to_json(),
        "seconds": round(time.monotonic() - started, 1),
    }
    digest = hashlib.sha256(data).hexdigest()
    made = Artifact(file, digest, len(data), part_name, "plan", options.precision, facts)
    return Plan(data, made, [*warnings, *build.warnings])


class _Build:
    """The objects of one build, which must live as long as it runs."""

    def __init__(
        self,
        trt: Any,
        gpu: Gpu,
        graph: Path,
        content: onnx.ModelProto,
        part: Part,
        options: BuildOptions,
        typing: str,
    ) -> None:
        self.trt, self.gpu, self.graph, self.part = trt, gpu, graph, part
        self.content, self.options, self.typing = content, options, typing
        self.log, self.warnings = Log(trt), list[str]()

    def run(self, name: str, float_bytes: int) -> tuple[bytes, Found]:
        """Parse, configure, build, look inside."""
        trt, options = self.trt, self.options
        try:
            builder = trt.Builder(self.log.logger)
        except TypeError as error:  # its factory gave a null pointer
            raise self._failed("TensorRT makes no builder") from error
        library.register_plugins(trt, self.log.logger)
        network = builder.create_network(flags.network_flags(trt))
        parser = trt.OnnxParser(network, self.log.logger)
        self._parse(parser)
        config = builder.create_builder_config()
        self._configure(config)
        config.add_optimization_profile(self._profile(builder))
        if self.typing == WEAK:
            self._tell(set_weak_types(trt, network, config, self.content.graph, options))
        data = self._serialize(builder, network, config, name)
        found = self._inspect(data)
        self._tell(check_found(found, options.precision, len(data), float_bytes, name))
        return data, found

    def _tell(self, text: str) -> None:
        """Warn, and keep the text for the report."""
        if text:
            self.warnings.append(text)
            warn(text + "; the parity gate decides")

    def _parse(self, parser: Any) -> None:
        # Standard since 10; 8.6 would compute instance norm in a plugin that loses precision.
        parser.set_flag(self.trt.OnnxParserFlag.NATIVE_INSTANCENORM)
        if adapt(self.content, weak=self.typing == WEAK):
            read = parser.parse(self.content.SerializeToString(), str(self.graph))
        else:
            read = parser.parse_from_file(str(self.graph))
        if not read:
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            texts = [f"node {error.node()}: {error.desc()}" for error in errors]
            raise TkError(
                f"TensorRT {self.trt.__version__} cannot read {self.graph.name}",
                found="\n    ".join(texts) or self.log.text(),
                fix="tk export … --opset 17, if this is TensorRT 8.6",
            )

    def _configure(self, config: Any) -> None:
        trt, options = self.trt, self.options
        # Detailed, or the inspector does not tell the types of layers.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.builder_optimization_level = options.level
        if options.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if not options.tf32:
            flags.clear_flag(trt, config, "TF32")
        flags.set_hardware(trt, config, options.hardware)
        flags.set_previews(trt, config)
        if options.own_tactics:
            flags.use_own_tactics_only(trt, config)
        if options.version_compatible:
            # Without the lean runtime inside: loading that would run the plan's code on the CPU.
            for flag in ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"):
                flags.set_flag(trt, config, flag, "a version-compatible plan")
        if options.cache is not None:
            timing_cache.attach(config, self._cache_file())

    def _profile(self, builder: Any) -> Any:
        profile, options = builder.create_optimization_profile(), self.options
        for spec in self.part.inputs:
            profile.set_shape(spec.name, *profile_shapes(spec, self.part, options))
        return profile

    def _serialize(self, builder: Any, network: Any, config: Any, name: str) -> bytes:
        with stoppable() as stop, progress(f"build {name}", STEPS) as bar:
            monitor = make_monitor(self.trt, bar, stop)
            if monitor is not None:
                setattr(config, "progress_monitor", monitor)  # noqa: B010 - not in 8.6
            memory = builder.build_serialized_network(network, config)
            if memory is None and not stop.is_set() and self._relaxed(config):
                memory = builder.build_serialized_network(network, config)
        if memory is None:
            raise self._failed(f"TensorRT {self.trt.__version__} built no plan of {name}")
        if self.options.cache is not None:
            timing_cache.save(config, self._cache_file())
        return bytes(memory)

    def _relaxed(self, config: Any) -> bool:
        """After a failure: prefer what 8.6 was told to obey, if it was told anything.

        It knows no kernel for some layers in float32 (NVIDIA/TensorRT#2407).
        """
        if self.typing != WEAK or not self.options.keep or self.log.lacks_memory():
            return False
        flags.clear_flag(self.trt, config, "OBEY_PRECISION_CONSTRAINTS")
        flags.set_flag(self.trt, config, "PREFER_PRECISION_CONSTRAINTS", "nodes kept in float32")
        self._tell(
            f"TensorRT {self.trt.__version__} has no kernels for all nodes that are to stay in "
            "float32; it was told to prefer them"
        )
        return True

    def _inspect(self, data: bytes) -> Found:
        try:
            runtime = self.trt.Runtime(self.log.logger)
        except TypeError as error:  # its factory gave a null pointer
            raise self._failed("TensorRT cannot look into the plan that it has built") from error
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._failed("TensorRT cannot load the plan that it has just built")
        return inspect(self.trt, engine)

    def _cache_file(self) -> Path:
        assert self.options.cache is not None
        return timing_cache.cache_file(self.options.cache, str(self.trt.__version__), self.gpu)

    def _failed(self, what: str) -> TkError:
        text = self.log.text()
        if self.log.lacks_memory():
            free, total = _gpu_memory(self.gpu)
            return EnvironmentLacks(
                f"{what}: not enough GPU memory",
                expected=f"room for batch {self.options.max_batch} of {self.graph.name}",
                found=f"{free} free of {total}\n    {text}",
                fix="stop what else uses the GPU, lower --max-batch, or give --workspace a limit",
            )
        return TkError(what, found=text)


def _gpu_memory(gpu: Gpu) -> tuple[str, str]:
    """Free and all memory as text; without cuda-python only the driver's total is known."""
    from tk.runtime.backends.tensorrt.cuda import memory_info

    try:
        free, total = memory_info()
    except TkError:
        return "?", f"{gpu.memory / 2**20:,.0f} MiB"
    return f"{free / 2**20:,.0f} MiB", f"{total / 2**20:,.0f} MiB"


def profile_shapes(spec: TensorSpec, part: Part, options: BuildOptions) -> list[tuple[int, ...]]:
    """Least, usual and largest shape of an input.

    Raises:
        TkError: a free axis that is not the batch has no limit.
    """
    ranges = {part.batch_axis: (1, options.optimum, options.max_batch)}
    ranges |= {axis: (1, min(USUAL, most), most) for axis, most in part.limits.items()}
    if unknown := [axis for axis in spec.shape if isinstance(axis, str) and axis not in ranges]:
        raise TkError(
            f"nothing says how large axis {unknown[0]!r} of {spec.name!r} may become",
            expected="a bundle whose manifest has a limit of it",
            fix="export the model again with this tk",
        )
    return [
        tuple(ranges[axis][place] if isinstance(axis, str) else axis for axis in spec.shape)
        for place in range(3)
    ]


def _check_types(trt: Any, part: Part) -> None:
    for spec in (*part.inputs, *part.outputs):
        if not has_type(trt, spec.dtype):
            raise TkError(
                f"TensorRT {trt.__version__} has no {spec.dtype}, the type of {spec.name!r}",
                fix="use TensorRT 10 or newer, or export this part with int32 inputs",
            )


def check_plugins(graph: onnx.ModelProto, options: BuildOptions) -> None:
    """Refuse a plan for the lean runtime of a graph that needs plugins.

    Raises:
        TkError: it does.
    """
    found = PLUGINS.intersection(node.op_type for node in graph.graph.node)
    if options.version_compatible and found:
        raise TkError(
            f"a version-compatible plan cannot hold {', '.join(sorted(found))}: it is a plugin of "
            "TensorRT, which tensorrt_lean lacks",
            fix="build without --version-compatible, on each version of TensorRT",
        )


def _float_bytes(graph: onnx.ModelProto) -> int:
    """Size of the graph's float weights if all were float32."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    quantized = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(
        4 * int(np.prod(weights.dims, dtype=np.int64))
        for weights in graph.graph.initializer
        if weights.data_type in (*floats, *quantized)
    )
