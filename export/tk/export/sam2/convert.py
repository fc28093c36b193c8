"""Weights of the original `sam2` package under the names of transformers' `Sam2Model`.

The package itself is not needed. Every tensor is either given a name or known to belong to the
video part (memory of earlier frames), which a picture does not use; anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tk.runtime.errors import TkError

VIDEO = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\..*"
    r"|maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
)
"""Tensors of the memory of earlier frames."""

_PROMPT, _DECODER = "prompt_encoder.", "mask_decoder."

_RULES: tuple[tuple[str, str], ...] = (
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.", "vision_encoder.neck."),
    (r"^sam_prompt_encoder\.", _PROMPT),
    (r"^sam_mask_decoder\.", _DECODER),
    (r"\bpatch_embed\.proj\.", "patch_embed.projection."),
    (r"\bconvs\.(\d+)\.conv\.", r"convs.\1."),
    (r"\bnorm(\d|_final_attn)", r"layer_norm\1"),
    (r"\bmlp\.layers\.0\.", "mlp.proj_in."),
    (r"\bmlp\.layers\.1\.", "mlp.proj_out."),
    (r"(head|mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(head|mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"(head|mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"\bout_proj\.", "o_proj."),
    (r"\boutput_upscaling\.0\.", "upscale_conv1."),
    (r"\boutput_upscaling\.1\.", "upscale_layer_norm."),
    (r"\boutput_upscaling\.3\.", "upscale_conv2."),
    (r"\bmask_downscaling\.0\.", "mask_embed.conv1."),
    (r"\bmask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"\bmask_downscaling\.3\.", "mask_embed.conv2."),
    (r"\bmask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"\bmask_downscaling\.6\.", "mask_embed.conv3."),
    (
        r"\bpe_layer\.positional_encoding_gaussian_matrix$",
        "shared_embedding.positional_embedding",
    ),
)
"""Applied in this order to every name. The middle layer of a head is renamed after its last."""

_POINT = re.compile(r"sam_prompt_encoder\.point_embeddings\.(\d+)\.weight")


@dataclass(frozen=True)
class Converted:
    """Outcome of a conversion.

    Attributes:
        state: names of `Sam2Model` and tensors, float32.
        left_out: original names of the video part's tensors, sorted.
    """

    state: dict[str, Tensor]
    left_out: tuple[str, ...]


def convert(original: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Converted:
    """Rename the weights of an original checkpoint.

    Args:
        original: names and tensors, as `sam2` saves them under `model`.
        expected: `state_dict()` of the `Sam2Model` that shall take them.

    Raises:
        TkError: a tensor is unknown, missing or of another shape; names the first ones.
    """
    state: dict[str, Tensor] = {}
    points: dict[int, Tensor] = {}
    left_out = []
    for name, value in original.items():
        if VIDEO.fullmatch(name):
            left_out.append(name)
        elif point := _POINT.fullmatch(name):
            points[int(point.group(1))] = value.float()
        else:
            state[_renamed(name)] = value.float()
    if points:
        ordered = [points[index] for index in sorted(points)]
        state[f"{_PROMPT}point_embed.weight"] = torch.cat(ordered)
    shared = f"{_PROMPT}shared_embedding.positional_embedding"
    if shared in state:
        # One matrix in the original, read in two places; transformers stores it twice.
        state["shared_image_embedding.positional_embedding"] = state[shared].clone()
    _check(state, expected)
    return Converted(state, tuple(sorted(left_out)))


def _renamed(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    problems = [f"no {name}" for name in expected if name not in state]
    problems += [f"unknown {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(value.shape)}, not {tuple(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        more = f" … {len(problems)} in all" if len(problems) > 4 else ""
        raise TkError(
            "these weights are not of the SAM-2 configuration that was named",
            found="; ".join(problems[:4]) + more,
            fix="name the configuration that the file was trained with: --sam2-cfg NAME",
        )
