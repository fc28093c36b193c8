"""What a model to export and a bundle that is there have unequal, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from tk.export.model import ExportModel
from tk.runtime.manifest import Manifest, Part
from tk.runtime.preprocess import CropSpec, ImageSpec

NAMED = 3
"""Differences that a message names."""

PROMPT = "prompt"


@dataclass(frozen=True)
class Difference:
    """One thing that is unequal.

    Attributes:
        what: its name for a person.
        old: in the bundle.
        new: asked for.
    """

    what: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.what}: {_text(self.old)} in the bundle, {_text(self.new)} asked for"

    @property
    def option(self) -> str:
        """What to type to get what is in the bundle; "" where no option decides it."""
        if self.what == PROMPT:
            return f"--bake {self.old!r}" if self.old else ""
        options = {"canvas": "--size", "opset": "--opset", "largest batch": "--max-batch"}
        name = options.get(self.what.split(" of ")[0], "")
        return f"{name} {self.old}" if name else ""


def differences(
    manifest: Manifest, model: ExportModel, identity: Mapping[str, Any], opset: int
) -> list[Difference]:
    """Compare all that the files of a bundle have in common.

    Args:
        manifest: of the bundle.
        model: to export.
        identity: of its checkpoint, as the manifest has it.
        opset: asked for.

    Returns:
        What is unequal; the checkpoint alone where that is, for it explains the rest.
    """
    opsets = {a.facts.get("opset") for a in manifest.artifacts if a.kind == "onnx"}
    specs = {name: part.spec for name, part in model.parts.items()}
    old = {
        "checkpoint (SHA-256)": manifest.source.get("sha256"),
        **_described(manifest.image, manifest.crop, manifest.parts),
        "opset": opsets.pop() if len(opsets) == 1 else sorted(map(str, opsets)),
        **_settings(manifest.classes, manifest.settings),
        **_flat(_specs(manifest.parts), "part "),
    }
    new = {
        "checkpoint (SHA-256)": identity["sha256"],
        **_described(model.image, model.crop, specs),
        "opset": opset,
        **_settings(model.classes, model.settings),
        **_flat(_specs(specs), "part "),
    }
    found = [
        Difference(what, old.get(what), new.get(what))
        for what in dict.fromkeys((*old, *new))
        if old.get(what) != new.get(what)
        # A part that only one of them has is told by `parts`, without its batch.
        and ((what in old and what in new) or not what.startswith("largest batch"))
    ]
    if found and found[0].what.startswith("checkpoint"):
        return found[:1]
    # Inputs and outputs follow from canvas and prompt: by themselves only where nothing else is.
    return [one for one in found if not one.what.startswith("part ")] or found


def _described(
    image: ImageSpec, crop: CropSpec | None, parts: Mapping[str, Part]
) -> dict[str, Any]:
    canvas = asdict(image)
    batches = {
        "largest batch" if len(parts) == 1 else f"largest batch of {name}": part.max_batch
        for name, part in parts.items()
    }
    return {
        "canvas": f"{canvas.pop('height')}x{canvas.pop('width')}",
        **_flat(canvas, "canvas "),
        **_flat(asdict(crop) if crop else {}, "crop "),
        "parts": ", ".join(parts),
        **batches,
    }


def _settings(classes: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat(settings, "setting ")
    prompt = flat.pop("setting text.baked", None)
    return {PROMPT: prompt, **_flat(list(classes), "class "), **flat}


def _specs(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {
        name: {"inputs": part.inputs, "outputs": part.outputs, "limits": part.limits}
        for name, part in parts.items()
    }


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    """Every leaf by its path: `setting text.max_tokens`, `class 3`; as JSON would give it back."""
    plain = orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    return {f"{prefix}{'.'.join(path)}": leaf for path, leaf in _leaves(plain)}


def _leaves(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, (dict, list)):
        yield (), value
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        for path, leaf in _leaves(item):
            yield (str(key), *path), leaf


def _text(value: Any) -> str:
    if value in (None, ""):
        return "nothing"
    return repr(value) if isinstance(value, str) and " " in value else str(value)
