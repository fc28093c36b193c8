"""`manifest.json`: everything a bundle says about itself."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.preprocess import CropSpec, ImageSpec, spec_from_json

SCHEMA = 1
"""Version of the manifest's layout; a reader refuses a version that it does not know."""

TASKS = ("embedder", "classifier", "detector", "segmenter")

_T = TypeVar("_T", bound="TensorSpec | Artifact")


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output.

    Attributes:
        dtype: numpy name (`uint8`, `float32`, …).
        shape: an integer per fixed axis, a name (`B`, `N`) per free axis.
        meaning: one phrase for the reader of the manifest.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))


@dataclass(frozen=True)
class Part:
    """One graph of a model: what goes in and what comes out.

    Attributes:
        inputs, outputs: in the order of the graph.
        max_batch: largest size of the free axis that the gate proved.
        limits: largest sizes of other free axes, by name: of the tokens of a prompt.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def batch_axis(self) -> str:
        """Name of the free axis that the outputs run along; "" for a part that has none."""
        axis = self.outputs[0].shape[0]
        return axis if isinstance(axis, str) else ""

    @property
    def one_picture(self) -> bool:
        """Whether a call serves one picture: its rows are boxes of it, say."""
        if any(spec.name == "image" and spec.shape[0] == self.batch_axis for spec in self.inputs):
            return False
        return any(spec.shape[:1] == (1,) for spec in self.inputs)


@dataclass(frozen=True)
class Artifact:
    """One file that can be run: a graph at one precision, or a plan.

    Attributes:
        file: path inside the bundle, POSIX.
        kind: `onnx` or `plan`.
        bytes: size, with the weights that lie in a file of their own.
        precision: what the file holds (`fp32`, `fp16`, `int8`), not what was asked for.
        facts: what its back end needs to know (opset, TensorRT version, GPU, …); `weights` names
            the file of the bundle that holds the weights of a graph too large for one file.
    """

    file: str
    sha256: str
    bytes: int
    part: str
    kind: str
    precision: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """File of the bundle with the weights, "" when they are inside."""
        return str(self.facts.get("weights", ""))


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    Attributes:
        task: one of `TASKS`.
        image: the canvas that the model sees.
        crop: how objects are cut out for it, or None for models that see whole pictures.
        parts: part name -> inputs, outputs, largest proved batch.
        classes: what the model's class axis means; empty when it has none.
        settings: numbers that belong to the model (default thresholds, mask frame, …).
        source: where it came from: checkpoint name, SHA-256, parameters, training step.
        versions: library versions at the last export; `parity.json` has those of each.
        licence: of the weights, as far as known.
        artifacts: files that can be run.
        files: SHA-256 of every other file of the bundle.
    """

    task: str
    image: ImageSpec
    crop: CropSpec | None
    parts: dict[str, Part]
    classes: tuple[str, ...]
    settings: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]
    licence: str
    artifacts: tuple[Artifact, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dict with the hash of its own canonical form under `sha256`."""
        value = {"schema": SCHEMA, **asdict(self)}
        return {**value, "sha256": _canonical_hash(value)}

    def with_artifacts(self, artifacts: list[Artifact], files: dict[str, str]) -> Manifest:
        """Return a copy that lists these files."""
        return replace(self, artifacts=tuple(artifacts), files=files)


def manifest_from_json(value: Any, bundle: Path) -> Manifest:
    """Check and rebuild a manifest.

    Args:
        value: parsed `manifest.json`.
        bundle: its folder, for messages.

    Raises:
        CheckFailed: its own hash does not match: somebody edited it.
        TkError: another schema version, or a malformed manifest.
    """
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise _other_schema(value, bundle)
    body = {key: item for key, item in value.items() if key != "sha256"}
    if value.get("sha256") != _canonical_hash(body):
        raise CheckFailed(
            f"the manifest of bundle {bundle.name} was changed after it was written",
            expected=f"sha256 {value.get('sha256')}",
            found=f"sha256 {_canonical_hash(body)}",
            fix="export the model again, or take the bundle from its source once more",
        )
    body.pop("schema")
    try:
        return _build(body)
    except (KeyError, TypeError) as error:
        raise TkError(f"the manifest of bundle {bundle.name} is malformed: {error}") from None


def _other_schema(value: Any, bundle: Path) -> TkError:
    """The error of a bundle of an older or newer tk, or of no tk at all."""
    found = value.get("schema") if isinstance(value, dict) else type(value).__name__
    newer = isinstance(found, int) and found > SCHEMA
    older = isinstance(found, int) and found < SCHEMA
    age = ": a newer tk wrote it" if newer else ": an older tk wrote it" if older else ""
    again = f"tk export SOURCE {bundle} --images DIR --overwrite"
    return TkError(
        f"the manifest of bundle {bundle.name} has another schema{age}",
        expected=f"schema {SCHEMA}",
        found=f"{found!r}",
        fix=f"{'update tk, or ' if newer else ''}export the model again with this tk: {again}",
    )


def _build(body: dict[str, Any]) -> Manifest:
    parts = {
        part: Part(
            inputs=tuple(_plain(TensorSpec, spec) for spec in spec_lists["inputs"]),
            outputs=tuple(_plain(TensorSpec, spec) for spec in spec_lists["outputs"]),
            max_batch=spec_lists["max_batch"],
            limits=spec_lists.get("limits", {}),
        )
        for part, spec_lists in body["parts"].items()
    }
    crop = body["crop"]
    built = {
        "image": spec_from_json(ImageSpec, body["image"]),
        "crop": None if crop is None else spec_from_json(CropSpec, crop),
        "parts": parts,
        "classes": tuple(body["classes"]),
        "artifacts": tuple(_plain(Artifact, item) for item in body["artifacts"]),
    }
    return Manifest(**{**body, **built})


def _plain(kind: type[_T], value: dict[str, Any]) -> _T:
    known = {item.name for item in fields(kind)}
    if unknown := set(value) - known:
        raise TypeError(f"unknown key {', '.join(sorted(unknown))} in {kind.__name__}")
    return kind(**value)


def _canonical_hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
