"""What both back ends of ONNX Runtime share: finding the package, reading a graph, its errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from typing import Any

from tk.runtime.errors import EnvironmentLacks, TkError

CPU, GPU = "onnxruntime", "onnxruntime-gpu"
"""Distributions; both install the folder `onnxruntime`."""

_NO_MEMORY = re.compile(
    r"requested buffer of size (\d+)|smaller than requested bytes of (\d+)|out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
)
"""What ONNX Runtime's arena and CUDA say when memory lacks, and the bytes that were asked for."""

_NO_CUDA = re.compile(
    r"cuDNN is unavailable|no kernel image|CUDA failure (35|100|209|802|803|999)\b|NOT_INITIALIZED"
    r"|Unknown provider option"
)
"""What it says when the CUDA of the machine does not do, whatever the graph: no or an old driver,
no GPU, kernels for other GPUs, a library that does not start."""


def missing_package() -> str:
    """Say why `onnxruntime` cannot be imported, "" when it can; imports nothing."""
    if installed(CPU) and installed(GPU):
        # Both wheels install the same folder: the one installed last wins and the GPU may vanish.
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them: "
            "pip install 'tk-vision[cpu]' or 'tk-vision[gpu]'"
        )
    if util.find_spec(CPU) is None:
        return (
            "onnxruntime is not installed: pip install 'tk-vision[cpu]', "
            "or 'tk-vision[gpu]' on a machine with an NVIDIA GPU"
        )
    return ""


def installed(distribution: str) -> bool:
    """Whether a distribution is there, by its metadata."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def load_graph(
    data: bytes,
    name: str,
    threads: int,
    weights: Mapping[str, bytes],
    providers: Sequence[str | tuple[str, dict[str, str]]],
) -> Any:
    """Make an `InferenceSession` of a graph in memory, on these providers and no others.

    Args:
        data: an ONNX file.
        name: for messages.
        threads: worker threads inside an operator; 0 takes all cores.
        weights: files that the graph may name, by name; they must outlive the session.
        providers: of ONNX Runtime, with options.

    Raises:
        TkError: ONNX Runtime refuses the graph.
        EnvironmentLacks: it does not get on with the CUDA of this machine.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings speak to its developers
    _only_these(options, weights, name, ort.__version__)
    try:
        # Without this a provider that fails is replaced by another one, with a line on stdout.
        return ort.InferenceSession(data, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ORT raises several unrelated exception types
        if memory_wanted(error) is not None:
            raise
        if lacks_cuda(error):
            raise cuda_error(f"ONNX Runtime {ort.__version__} cannot run {name}", error) from error
        raise TkError(
            f"ONNX Runtime {ort.__version__} refuses {name}: {first_line(error)}",
            fix="export the model again; tk verify tells whether the bundle is intact",
        ) from error


def _only_these(options: Any, weights: Mapping[str, bytes], name: str, version: str) -> None:
    """Give the engine the files of weights; with a table of them, even an empty one, it opens no
    file itself: a graph could name any, and one loaded from memory is not tied to a folder.
    """
    give = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if give is not None:
        table = dict(weights) or {"": b""}
        give(list(table), list(table.values()), [len(data) for data in table.values()])
    elif weights:
        raise EnvironmentLacks(
            f"ONNX Runtime {version} cannot read weights beside the graph, as {name} has them",
            fix="pip install --upgrade onnxruntime",
        )


def memory_wanted(error: Exception) -> int | None:
    """Bytes that could not be had: 0 when it does not say how many, None for another error."""
    found = _NO_MEMORY.search(str(error))
    return None if found is None else int(found[1] or found[2] or 0)


def lacks_cuda(error: Exception) -> bool:
    """Whether an error is about CUDA on this machine, not about the graph."""
    return _NO_CUDA.search(str(error)) is not None


def cuda_error(what: str, error: Exception) -> EnvironmentLacks:
    """Our words for such an error."""
    return EnvironmentLacks(
        f"{what} with the CUDA of this machine",
        found=first_line(error),
        fix="pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries; no kernel image: this "
        "build is not for this GPU, take another version of it. tk doctor lists what there is",
    )


def first_line(error: Exception) -> str:
    """First line of an error that may have none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
