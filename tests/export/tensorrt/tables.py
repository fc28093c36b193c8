"""The API of real TensorRT bindings and of cuda-python, as `api/dump*.py` wrote it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "api"
VERSIONS = ("8.6", "10.3", "10.13", "11.0", "11.4")
CUDA_VERSIONS = ("12.9", "13.5")


@cache
def table(version: str) -> dict[str, Any]:
    """API of one TensorRT, `lean-11.4` for the lean runtime."""
    name = version if version.startswith("lean") else f"trt-{version}"
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return loaded


@cache
def cuda_table(version: str) -> dict[str, Any]:
    """API of one `cuda.bindings.runtime`."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"cuda-{version}.json").read_text())
    return loaded


def member(api: dict[str, Any], owner: str, name: str) -> str:
    """What `owner.name` is: `enum member`, `method`, `attribute`, `class`, `enum`, or ""."""
    full = f"{owner}.{name}" if owner else name
    if full in api["enums"]:
        return "enum"
    if full in api["classes"]:
        return "class"
    if owner in api["enums"]:
        return "enum member" if name in (*api["enums"][owner], "name") else ""
    if owner:
        return _of_class(api, owner, name)
    return "name" if name in (*api["names"], "__version__") else ""


def _of_class(api: dict[str, Any], owner: str, name: str) -> str:
    kind = api["classes"].get(owner)
    if kind is None:
        return ""
    if name in kind["methods"]:
        return "method"
    return "attribute" if name in kind["attributes"] or name == "__init__" else ""


def argument_counts(signatures: list[str]) -> set[int]:
    """Numbers of arguments that the overloads of a method take."""
    counts: set[int] = set()
    for signature in signatures:
        inside = re.sub(r"\[[^\]]*\]|<[^>]*>", "", signature[1 : signature.index(")")])
        pieces = [piece for piece in inside.split(",") if piece.strip()]
        needed = sum("=" not in piece for piece in pieces)
        counts |= set(range(needed, len(pieces) + 1))
    return counts
