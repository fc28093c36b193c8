"""ONNX Runtime on an NVIDIA GPU: bound inputs and outputs, a bounded arena, no silent fallback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.backends.cuda_stack import install_command, too_new
from tk.runtime.backends.onnxrt import library
from tk.runtime.backends.onnxrt_cuda.options import arena_limit, provider_options
from tk.runtime.backends.tensorrt.gpu import Gpu, find_gpus
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Part

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"

Providers = Sequence[str | tuple[str, dict[str, str]]]


def missing() -> str:
    """Say what this machine lacks to run this back end, "" when nothing; imports nothing heavy."""
    if lack := library.missing_package():
        return lack
    gpus = find_gpus()
    if not gpus:
        return "no NVIDIA GPU that CUDA may use (libcuda.so.1, cuInit)"
    driver = gpus[0].driver
    if not library.installed(library.GPU):
        return (
            "onnxruntime is the build for the CPU: pip uninstall onnxruntime, then "
            + install_command(driver)
        )
    return too_new((library.GPU,), driver)


def refusal(facts: Mapping[str, Any], device: int = 0) -> str:
    """Say why a graph with these facts cannot run here, "" when it can."""
    if lack := missing():
        return lack
    count = len(find_gpus())
    return f"there is no GPU {device}: CUDA shows {count}" if device >= count else ""


def open_session(
    data: bytes,
    name: str,
    precision: str,
    part: Part,
    threads: int,
    weights: Mapping[str, bytes] | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    device: int = 0,
) -> Session:
    """Load a graph from bytes that were already checked.

    Args:
        data: an ONNX file.
        threads: for the operators that stay on the CPU (shapes, mostly); 0 takes all cores.
        weights: content of the files that the graph names for its weights.
        facts: of the artifact; `tf32: true` lets float32 products be rounded to TensorFloat-32.
        device: number of the GPU.

    Raises:
        EnvironmentLacks: no GPU, no onnxruntime-gpu, no CUDA libraries, too little GPU memory.
        TkError: ONNX Runtime refuses the graph.
    """
    if lack := refusal(facts or {}, device):
        raise EnvironmentLacks(f"cannot run {name}", found=lack)
    gpu = find_gpus()[device]
    tf32 = (facts or {}).get("tf32") is True
    options = provider_options(device, gpu.memory, precision=precision, tf32=tf32)
    _preload()
    # The CPU provider is not a fallback here: ONNX Runtime wants it for sizes and shapes.
    providers: Providers = [(PROVIDER, options), "CPUExecutionProvider"]
    with _memory_errors(name, gpu):
        session = library.load_graph(data, name, threads, weights or {}, providers)
    require_provider(session, name, PROVIDER)
    return BoundSession(session, name, precision, part, weights or {}, gpu, ("cuda", device))


def require_provider(session: Any, name: str, provider: str) -> None:
    """Refuse a session that was quietly moved to another provider.

    Raises:
        EnvironmentLacks: `provider` is not among those that the session runs on.
    """
    running = session.get_providers()
    if provider not in running:
        raise EnvironmentLacks(
            f"ONNX Runtime does not run {name} on the GPU",
            expected=provider,
            found=", ".join(running),
            fix="its CUDA and cuDNN libraries must be there and for one CUDA with the driver: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'; tk doctor lists what there is",
        )


class BoundSession(Session):
    """A graph whose inputs and outputs lie where the model runs.

    Args:
        session: of ONNX Runtime.
        gpu: what it runs on, for messages.
        place: name of the memory and number of the device, as `OrtValue` calls them.
    """

    def __init__(
        self,
        session: Any,
        name: str,
        precision: str,
        part: Part,
        weights: Mapping[str, bytes],
        gpu: Gpu,
        place: tuple[str, int],
    ) -> None:
        super().__init__(name, NAME, precision, part)
        session.disable_fallback()  # a failing run must fail, not go on somewhere else
        self._session: Any = session
        self._weights = weights  # the engine may go on reading them where they lie
        self._gpu, self._place = gpu, place
        self._held: dict[str, Any] = {}

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        names = [spec.name for spec in self.part.outputs]
        with _memory_errors(self.name, self._gpu):
            try:
                binding = self._session.io_binding()
                for name, array in inputs.items():
                    binding.bind_ortvalue_input(name, self._upload(name, array))
                for name in names:
                    binding.bind_output(name, *self._place)
                self._session.run_with_iobinding(binding)
                values = binding.copy_outputs_to_cpu()
            except Exception as error:
                if library.memory_wanted(error) is not None:
                    raise
                what = f"{self.name} failed while running"
                if library.lacks_cuda(error):
                    raise library.cuda_error(what, error) from error
                raise TkError(f"{what}: {library.first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def _upload(self, name: str, array: NDArray[np.generic]) -> Any:
        """Copy an input into memory of ours there; it is taken anew only for another shape."""
        import onnxruntime as ort

        held = self._held.get(name)
        if held is None or tuple(held.shape()) != array.shape:
            held = self._held[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), array.dtype.type, *self._place
            )
        held.update_inplace(np.ascontiguousarray(array))
        return held

    def _close(self) -> None:
        self._held.clear()
        self._session, self._weights = None, {}


def _preload() -> None:
    """Load the CUDA libraries of NVIDIA's wheels; what it has to say must not mix with results."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)  # errors only: 1.31 warns at every session
    preload = getattr(ort, "preload_dlls", None)  # 1.21 and newer
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):
            preload(directory="")


@contextlib.contextmanager
def _memory_errors(name: str, gpu: Gpu) -> Iterator[None]:
    try:
        yield
    except TkError:
        raise
    except Exception as error:  # ORT raises several unrelated exception types
        wanted = library.memory_wanted(error)
        if wanted is None:
            raise
        raise EnvironmentLacks(
            f"not enough GPU memory to run {name}",
            expected=f"{wanted / 2**20:,.0f} MiB more in one piece" if wanted else "",
            found=f"{gpu.name} with {gpu.memory / 2**20:,.0f} MiB, of which this session may take "
            f"{arena_limit(gpu.memory) / 2**20:,.0f} MiB",
            fix="stop what else uses the GPU, or lower --batch-size",
        ) from error
