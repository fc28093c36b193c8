"""Which pair (artifact, back end) runs a part, and the words that say why.

A verdict belongs to the pair: the same graph can drift differently on different back ends. So
only pairs that the parity gate passed are ever taken, in the order of `registry.PREFERENCE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tk.runtime.backends.registry import BACKENDS, Backend, check_names, rank
from tk.runtime.devices import Device, parse_device
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.manifest import Artifact

Verdicts = Mapping[tuple[str, str], bool]
"""(file, back end) -> passed."""


@dataclass(frozen=True)
class Pair:
    """An artifact and a back end for its kind.

    Attributes:
        passed: what the gate said; None when it never judged the pair.
    """

    artifact: Artifact
    backend: Backend
    passed: bool | None

    def __str__(self) -> str:
        return f"{self.artifact.precision} on {self.backend.name}"

    def refusal(self, device: Device) -> str:
        """Say why this machine cannot run it, "" when it can; reads nothing of the artifact."""
        reason: str = self.backend.load().refusal(self.artifact.facts, device.index)
        return reason


@dataclass(frozen=True)
class Wish:
    """What a user asks for.

    Attributes:
        device: where.
        precision: `auto`, or what the file has to hold.
        backend: `auto`, or a name as `Backend.answers_to` takes it.
    """

    device: Device
    precision: str
    backend: str

    def allows(self, pair: Pair) -> bool:
        """Whether a pair is what was asked for."""
        precisions = ("auto", pair.artifact.precision)
        return self.takes(pair.backend) and self.precision in precisions

    def takes(self, backend: Backend) -> bool:
        """Whether a back end is what was asked for."""
        return self.device.allows(backend.device) and backend.answers_to(self.backend)

    def __str__(self) -> str:
        return f"device {self.device}, precision {self.precision}, back end {self.backend}"


def read_wish(device: str, precision: str, backend: str) -> Wish:
    """Check the words of a wish.

    Raises:
        TkError: one of them is no device, precision or back end.
    """
    check_names(backend, precision)
    return Wish(parse_device(device), precision, backend)


def wish_of_part(wish: Wish, part: str, artifacts: Iterable[Artifact]) -> Wish:
    """What a wish means for one part of a model.

    A part that has nothing to compute in a precision (a text side, a decoder) has no file of it,
    though the model has: it runs in float32.
    """
    having = {artifact.part for artifact in artifacts if artifact.precision == wish.precision}
    return replace(wish, precision="fp32") if having and part not in having else wish


def rank_pairs(artifacts: Iterable[Artifact], part: str, verdicts: Verdicts) -> list[Pair]:
    """All pairs of a part, the one that is expected to be fastest first."""
    pairs = [
        Pair(artifact, backend, verdicts.get((artifact.file, backend.name)))
        for artifact in artifacts
        for backend in BACKENDS.values()
        if artifact.part == part and artifact.kind == backend.kind
    ]
    return sorted(pairs, key=lambda pair: rank(pair.backend.name, pair.artifact.precision))


def why(taken: Pair, wish: Wish, pairs: Sequence[Pair], refused: Mapping[int, str]) -> str:
    """One line: why `taken` runs.

    Args:
        taken: of `pairs`.
        wish: what was asked for.
        pairs: that passed and were asked for, best first.
        refused: place in `pairs` -> why this machine cannot run it.
    """
    asked = [
        f"{name} {value}"
        for name, value in (
            ("device", str(wish.device)),
            ("precision", wish.precision),
            ("back end", wish.backend),
        )
        if value != "auto"
    ]
    scope = f" with {', '.join(asked)}" if asked else ""
    if len(pairs) == 1:
        return f"the only pair{scope} that passed the gate"
    text = f"the best of {len(pairs)} pairs{scope} that passed the gate"
    if refused:
        lost = "; ".join(f"{pairs[at]}: {reason}" for at, reason in refused.items())
        text = f"{text} and run here (not {lost})"
    return text


def nothing_proved(bundle: Path, part: str, wish: Wish, pairs: Sequence[Pair]) -> TkError:
    """The error when no pair that was asked for passed the gate: what is there, how to make it."""
    passed = [str(pair) for pair in pairs if pair.passed]
    asked = [pair for pair in pairs if wish.allows(pair)]
    failed = [str(pair) for pair in asked if pair.passed is False]
    unjudged = [pair for pair in asked if pair.passed is None]
    found = "passed: " + (", ".join(_once(passed)) or "nothing")
    if failed:
        found += "; failed the gate: " + ", ".join(_once(failed))
    if unjudged:
        found += "; never judged: " + ", ".join(_once(map(str, unjudged)))
    return TkError(
        f"bundle {bundle.name} has nothing proved for part {part!r} with {wish}",
        found=found,
        fix=_how_to_make(bundle, wish, pairs, unjudged),
    )


def _how_to_make(bundle: Path, wish: Wish, pairs: Sequence[Pair], unjudged: Sequence[Pair]) -> str:
    if unjudged:
        backend = unjudged[0].backend.name
        return f"prove it on this machine: tk verify {bundle} --backend {backend} --record"
    graph = any(
        pair.artifact.kind == "onnx" and wish.precision in ("auto", pair.artifact.precision)
        for pair in pairs
    )
    precision = "" if wish.precision == "auto" else f" --precision {wish.precision}"
    if wish.backend != "auto" and BACKENDS["tensorrt"].answers_to(wish.backend) and graph:
        return f"build the plan on the machine that runs it: tk plan {bundle}{precision}"
    return f"ask for what passed, or make it: tk export SOURCE {bundle} --images DIR{precision}"


def nothing_runs(name: str, pairs: Sequence[Pair], refused: Mapping[int, str]) -> EnvironmentLacks:
    """The error when pairs passed the gate and this machine can run none of them."""
    lacks = _once(f"{pairs[at]}: {reason}" for at, reason in refused.items())
    return EnvironmentLacks(
        f"this machine cannot run bundle {name}",
        found="; ".join(lacks),
        fix="tk doctor says how to get what is missing",
    )


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
