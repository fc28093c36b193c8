"""The parts of a model in PyTorch: eager, compiled, and on a GPU with autocast."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch._dynamo
from torch import Tensor

from tk.benchmarks.engines import Engine, ModelsOptions, batch_of, sizes_of
from tk.benchmarks.models_report import BASE
from tk.export.differences import differences
from tk.export.model import ExportModel, ExportPart
from tk.export.sources.registry import OPTIONS, find_source, open_source
from tk.export.write import identity
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import Bundle
from tk.runtime.choice import Wish
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part

EAGER, AUTOCAST = BASE, ", autocast"
WARM = 3
"""Calls before those that CUDA events time."""


def torch_engines(
    bundle: Bundle, options: ModelsOptions, wish: Wish, inputs: Mapping[str, Arrays]
) -> tuple[dict[str, list[Engine]], list[str]]:
    """Ways of PyTorch to run each part of a bundle.

    Args:
        bundle: whose parts are timed.
        options: source, threads, and whether to compile.
        wish: for a device.
        inputs: of each part, to compile it with.

    Returns:
        Part -> engines, and what could not be compiled, a sentence each.

    Raises:
        TkError: the source is another model than the bundle's.
        EnvironmentLacks: a GPU was asked for that PyTorch does not see.
    """
    device = _device(wish)
    # A compiled part is one program per batch and precision; beyond the limit, which is 8, it would
    # go on eager without a word.
    for name, value in (("recompile_limit", 64), ("fail_on_recompile_limit_hit", True)):
        setattr(torch._dynamo.config, name, value)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = _source(bundle, options)
    engines: dict[str, list[Engine]] = {}
    left_out: list[str] = []
    for name, part in model.parts.items():
        module, spec = part.module.to(device), bundle.manifest.parts[name]
        engines[name] = [_TorchPart(module, spec, device, torch.float32).engine(EAGER)]
        kinds = [torch.float32] if device.type == "cpu" else [torch.float32, torch.float16]
        if device.type == "cuda":
            engines[name].append(
                _TorchPart(module, spec, device, torch.float16).engine(EAGER + AUTOCAST)
            )
        for kind in kinds if options.compile else []:
            sizes = sizes_of(spec, options)
            examples = [batch_of(spec, inputs[name], size, 0) for size in (1, *sizes)]
            made = _compiled(part, spec, device, kind, examples)
            if isinstance(made, str):
                left_out.append(f"part {name}: {made}")
            else:
                engines[name].append(made)
    return engines, left_out


def _device(wish: Wish) -> torch.device:
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wish.device.kind == "cpu" or (wish.device.kind == "auto" and not seen):
        return torch.device("cpu")
    if wish.device.index >= seen:
        raise EnvironmentLacks(
            f"PyTorch sees no GPU {wish.device.index}",
            found=f"{seen} GPUs; torch {torch.__version__}",
            fix="install the PyTorch build for this CUDA, or leave --source out",
        )
    return torch.device("cuda", wish.device.index)


def _source(bundle: Bundle, options: ModelsOptions) -> ExportModel:
    """Open what a bundle was exported from, on its canvas, with its prompt."""
    manifest, canvas = bundle.manifest, bundle.manifest.image
    parts = [part for part in manifest.parts.values() if not part.one_picture]
    seeing = [part for part in parts if any(spec.name == "image" for spec in part.inputs)]
    largest = max(part.max_batch for part in seeing or parts)
    sized = find_source(options.source, sam2_cfg=options.sam2_cfg).task in OPTIONS["size"]
    model = open_source(
        options.source,
        largest,
        size=(canvas.height, canvas.width) if sized else None,
        prompt=str(manifest.settings.get("text", {}).get("baked", "")),
        backbone=options.backbone,
        sam2_cfg=options.sam2_cfg,
    )
    (opset, *_) = [a.facts["opset"] for a in manifest.artifacts if a.kind == "onnx"]
    if unequal := differences(manifest, model, identity(model.checkpoint), opset):
        raise TkError(
            f"{options.source} is not what bundle {bundle.path.name} was made from",
            found="; ".join(map(str, unequal[:3])),
            fix="--source takes what `tk export` was given",
        )
    return model


@dataclass(frozen=True)
class _TorchPart:
    """A part in PyTorch on one device.

    Attributes:
        module: tensors in the order of the part's inputs -> a tensor or a tuple.
        spec: names and types.
        device: where it runs.
        kind: float32, or what autocast computes in.
    """

    module: Callable[..., object]
    spec: Part
    device: torch.device
    kind: torch.dtype

    def engine(self, name: str) -> Engine:
        """Under this name in the tables."""
        precision = "fp32" if self.kind == torch.float32 else "fp16"
        timer = self.gpu_seconds if self.device.type == "cuda" else None
        return Engine(name, precision, self.call, timer)

    @torch.inference_mode()
    def call(self, inputs: Arrays) -> object:
        """From arrays of the host to arrays of the host."""
        with self._typed():
            outputs = self.module(*self._tensors(inputs))
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        return [value.float().cpu().numpy() for value in values]

    @torch.inference_mode()
    def gpu_seconds(self, inputs: Arrays, repeats: int) -> list[float]:
        """Seconds of each run by CUDA events, its inputs on the GPU already."""
        given, found = self._tensors(inputs), []
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for turn in range(WARM + repeats):
            begin.record()
            with self._typed():
                self.module(*given)
            end.record()
            end.synchronize()
            if turn >= WARM:
                found.append(begin.elapsed_time(end) / 1e3)
        return found

    def _tensors(self, inputs: Arrays) -> list[Tensor]:
        return [torch.from_numpy(inputs[one.name]).to(self.device) for one in self.spec.inputs]

    def _typed(self) -> AbstractContextManager[object]:
        if self.kind == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.kind)


def _compiled(
    part: ExportPart,
    spec: Part,
    device: torch.device,
    kind: torch.dtype,
    examples: Sequence[Arrays],
) -> Engine | str:
    """The part compiled for each size by itself, tried once; why not, if that fails."""
    module = torch.compile(part.module, dynamic=False)
    title = "PyTorch, compiled" + (AUTOCAST if kind == torch.float16 else "")
    engine = _TorchPart(module, spec, device, kind).engine(title)
    began = time.perf_counter()
    try:
        for inputs in examples:
            engine.call(inputs)
    except Exception as error:  # torch.compile raises what its many parts raise
        first = str(error).strip().splitlines()
        return f"{title}: {first[0] if first else type(error).__name__}"
    engine.opened = time.perf_counter() - began
    return engine
