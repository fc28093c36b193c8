"""Collect what our files use of TensorRT and CUDA from their syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

RECEIVERS = {
    "trt": "",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "other": "ITimingCache",
    "layer": "ILayer",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "inspector": "EngineInspector",
    "severity": "ILogger.Severity",
    "mode": "TensorIOMode",
    "strategies": "ExecutionContextAllocationStrategy",
}
"""Our names of TensorRT's objects; a name not listed is not checked, so keep to these."""

ELSEWHERE = {"_engine": {"Engine"}}
"""A name of `RECEIVERS` that in some files holds an object of ours: receiver -> its class."""


@dataclass(frozen=True)
class Use:
    """One use.

    Attributes:
        owner: class or enum, "" for the module itself.
        optional: behind `getattr` or `hasattr`, so that one version with it is enough.
        arguments: number of positional ones of a call; -1 when it is no plain call.
    """

    owner: str
    name: str
    optional: bool
    arguments: int
    place: str


def find_uses(source: str, file: str) -> list[Use]:
    """Uses of TensorRT in a file."""
    tree = ast.parse(source)
    ours = _own_names(tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    uses = []
    for node in ast.walk(tree):
        place = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute):
            owner = _owner(node.value, ours)
            if owner is not None:
                uses.append(Use(owner, node.attr, False, _count(calls.get(id(node))), place))
        elif isinstance(node, ast.Call):
            uses += _by_name(node, ours, place)
    return uses


def _own_names(tree: ast.Module) -> set[str]:
    """Receivers that this file annotates, or makes, as objects of ours."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = getattr(node.value.func, "id", "")
            for target in node.targets:
                name = getattr(target, "attr", getattr(target, "id", ""))
                if made in ELSEWHERE.get(name, ()):
                    found.add(name)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def _owner(node: ast.expr, ours: set[str]) -> str | None:
    """TensorRT's class or enum that an expression is, or None."""
    if isinstance(node, ast.Name):
        return None if node.id in ours else RECEIVERS.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Name) and node.value.id in ("self", "owner"):
        return None if node.attr in ours else RECEIVERS.get(node.attr)
    if node.attr == "trt":
        return ""
    outer = _owner(node.value, ours)
    if outer is None or not re.match(r"[A-Z]", node.attr):
        return None
    return f"{outer}.{node.attr}" if outer else node.attr


def _count(call: ast.Call | None) -> int:
    if call is None or any(isinstance(item, ast.Starred) for item in call.args) or call.keywords:
        return -1
    return len(call.args)


def _by_name(call: ast.Call, ours: set[str], place: str) -> Iterator[Use]:
    if getattr(call.func, "id", "") not in ("getattr", "hasattr", "setattr"):
        return
    owner = _owner(call.args[0], ours)
    name = call.args[1]
    if owner is not None and isinstance(name, ast.Constant):
        yield Use(owner, str(name.value), True, -1, place)


def find_member_names(source: str) -> set[str]:
    """Constants in capitals: names of members that are looked up by string."""
    return {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", node.value)
        and len(node.value) > 3
    }


def find_cuda_uses(source: str, file: str) -> list[Use]:
    """Uses of `cuda.bindings.runtime`, which our file calls `rt` or `_rt()`."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = _cuda_owner(node.value)
            if owner is not None:
                place = f"{file}:{node.lineno}"
                uses.append(Use(owner, node.attr, False, _count(calls.get(id(node))), place))
    return uses


def _cuda_owner(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name) and node.id == "rt":
        return ""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_rt":
        return ""
    if isinstance(node, ast.Attribute) and _cuda_owner(node.value) == "":
        return node.attr
    return None
