"""Run a graph exactly as it is written: the session of emulated rounding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from tk.export.precision.partial import open_part
from tk.runtime.backends.base import Arrays, Session
from tk.runtime.errors import TkError
from tk.runtime.manifest import Part

EMULATED = "emulated"
"""As verdicts name it, where a back end's name stands otherwise."""


class EmulatedSession(Session):
    """A graph of `emulate`, in ONNX Runtime without any optimisation: no rounding is fused away."""

    def __init__(self, model: onnx.ModelProto, name: str, precision: str, part: Part) -> None:
        super().__init__(name, EMULATED, precision, part)
        self._names = [spec.name for spec in part.outputs]
        self._session = open_part(model, model.graph.node, self._names, 0)

    def _run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        try:
            values = self._session.run(self._names, dict(inputs))
        except Exception as error:  # ORT raises several unrelated exception types
            raise TkError(f"{self.name}, emulated, failed while running: {error}") from error
        return dict(zip(self._names, values, strict=True))

    def _close(self) -> None:
        self._session = None
