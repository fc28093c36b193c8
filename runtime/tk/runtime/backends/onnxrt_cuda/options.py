"""Options of ONNX Runtime's CUDA provider, and why each is what it is."""

from __future__ import annotations

HALF = ("fp16", "bf16")

MEMORY_SHARE = 0.8
"""Part of the GPU's memory that the arena of one session may grow to. The rest is for what lies
outside of it: CUDA's own context, cuDNN's handles, bound inputs, FAISS, the desktop. The arena
takes only what a run needs, so several sessions share a GPU; the bound makes a run that needs more
fail with numbers instead of taking the memory of everything else on that GPU."""


def arena_limit(memory: int) -> int:
    """Largest size of the arena, bytes, on a GPU with `memory` bytes."""
    return int(memory * MEMORY_SHARE)


def provider_options(
    device: int, memory: int, *, precision: str = "fp32", tf32: bool = False
) -> dict[str, str]:
    """Options of the provider.

    Args:
        device: number of the GPU.
        memory: all memory of that GPU, bytes.
        precision: of the graph.
        tf32: whether float32 products may be rounded to TensorFloat-32.

    Returns:
        Name -> text, as the provider reads them.
    """
    return {
        "device_id": str(device),
        "gpu_mem_limit": str(arena_limit(memory)),
        # The other strategy never gives a small block to a larger request: with 1, 2, … 64 boxes a
        # SAM-2 decoder took 1174 MiB instead of 64 (ONNX Runtime 1.31.1 and 1.25.1).
        "arena_extend_strategy": "kNextPowerOfTwo",
        # The default tries all algorithms anew at every new shape, and may choose another one in
        # the next process: seconds for each number of boxes, and answers that do not repeat.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Half-float convolutions are slow without the workspace that their best algorithms want.
        "cudnn_conv_use_max_workspace": "1",
        # Separate streams for copies can race with the model (microsoft/onnxruntime#4829).
        "do_copy_in_default_stream": "1",
        # Sums of a fused layer normalisation in float32, as the graph's own would be.
        "enable_skip_layer_norm_strict_mode": "1",
        # On by default, and float32 would keep 10 bits of 23 without a word. But off, it keeps
        # convolutions of every type from the tensor cores (nn/conv.cc), which half floats are for;
        # what such a graph has in float32 may then be rounded, and the gate judges it like that.
        "use_tf32": "1" if tf32 or precision in HALF else "0",
    }
