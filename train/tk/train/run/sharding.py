"""Sharded training: every process keeps its part of weights, gradients and optimizer state.

`torch.distributed.fsdp.fully_shard` (FSDP2; Zhao et al., arXiv:2304.11277, is the first version):
a sharded parameter is a DTensor, of which a process holds some rows; a module gathers its whole
parameters for as long as it computes, and leaves each process the mean gradient of its rows.
Checkpoints hold whole tensors, so that a run may go on sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tk.train.run.distributed import broadcast, is_main, world


def shard(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Shard modules in place, each with the parameters that no module before it has.

    All processes call it, before the optimizer is made: parameters become other objects. They
    start as those of process 0.

    Args:
        modules: inner ones first; the outermost must be entered by their `forward`.
        device: where the modules are.
    """
    # What a backbone gives is views of its tokens, which nothing changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world(),))
    for module in modules:
        broadcast([p.data for p in module.parameters() if not isinstance(p, DTensor)])
        # Also of the outermost, else a teacher's weights stay whole where no gradient comes back.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(value: Any) -> Any:
    """A state dict with whole tensors on the CPU in place of sharded ones; all processes call it.

    Returns:
        the very same without sharded tensors; else a copy, in which processes other than the
        first, which have no use for it, get None for the sharded tensors.
    """
    if not any(isinstance(tensor, DTensor) for tensor in _tensors(value)):
        return value
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner) for inner in value]
    full = whole_tensor(value)
    return full.detach().cpu() if is_main() else None


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor, or the whole of a sharded one, in all processes, which all call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parts_like(own: dict[str, Tensor], full: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of whole tensors, sharded as a module's own; the very same if that is not."""
    if not any(isinstance(tensor, DTensor) for tensor in own.values()):
        return full
    return {name: _part_like(own.get(name), value) for name, value in full.items()}


def optimizer_parts(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state of an optimizer with whole tensors, sharded as its parameters, if they are."""
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return state
    sharded = {
        place: {
            name: _part_like(parameters[place], value)
            if isinstance(value, Tensor) and value.shape == parameters[place].shape
            else value
            for name, value in entry.items()
        }
        for place, entry in state["state"].items()
    }
    return {**state, "state": sharded}


def _part_like(own: Tensor | None, full: Tensor) -> Tensor:
    if not isinstance(own, DTensor):
        return full
    # Every process has read the whole: each cuts out its own rows (None: nobody sends any).
    return distribute_tensor(
        full.to(own.device), own.device_mesh, own.placements, src_data_rank=None
    )


def _tensors(value: Any) -> list[Any]:
    """The leaves of a state dict."""
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _tensors(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _tensors(inner)]
    return [value]
