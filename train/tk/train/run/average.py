"""A moving average of the weights (EMA): smoother than the last step's, for results and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Average of what training changes in a module: its frozen parameters are left out.

    Args:
        module: what is trained; the average starts at its present values.
        decay: share of the old average that is kept by a step, once many steps were made. The
            first steps keep (1 + t) / (10 + t), so a short run is not dragged to its start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values = {name: value.detach().clone() for name, value in _state(module).items()}

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = _state(self.module)
        floats = [name for name, value in current.items() if value.is_floating_point()]
        with torch.no_grad():
            new = [current[name].detach() for name in floats]
            torch._foreach_lerp_([self.values[name] for name in floats], new, 1 - decay)
            for name in current.keys() - set(floats):  # counters of batch norm
                self.values[name].copy_(current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the module for the length of a `with`."""
        own = {name: value.detach().clone() for name, value in _state(self.module).items()}
        _fill(self.module, self.values)
        try:
            yield
        finally:
            _fill(self.module, own)

    def buffers(self) -> list[Tensor]:
        """Averages of what is no parameter: statistics of batch norm."""
        names = {name for name, _ in self.module.named_buffers()}
        return [value for name, value in self.values.items() if name in names]

    def state_dict(self) -> dict[str, Tensor]:
        """The average under the names of the module's state dict."""
        return self.values

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        for name, value in self.values.items():
            value.copy_(values[name])


def _state(module: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that are not frozen, and the buffers of a checkpoint."""
    kept = module.state_dict().keys()
    state: dict[str, Tensor] = {k: v for k, v in module.named_buffers() if k in kept}
    state |= {name: value for name, value in module.named_parameters() if value.requires_grad}
    return state


def _fill(module: nn.Module, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in _state(module).items():
            value.copy_(values[name])
