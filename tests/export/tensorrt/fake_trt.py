"""A stand-in for `tensorrt`, made from the recorded API of a real version.

It has the classes, methods, attributes and enums of that version and no others: touching anything
else raises AttributeError, as the real one does. Methods record their calls; those of `Behaviour`
do something; the others give an empty value of the type that the real signature names.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.export.tensorrt.tables import table

OPEN = ("ILogger", "IProgressMonitor", "IOutputAllocator")
"""Classes that are meant to be subclassed."""

Behaviour = dict[tuple[str, str], Callable[..., Any]]


class Fake:
    """A made module and what was done with it.

    Args:
        version: of `tables.VERSIONS`, or `lean-11.4`.
        behaviour: (class, method) -> called as `f(object, *arguments)`.

    Attributes:
        module: put this into `sys.modules["tensorrt"]`.
        calls: (class, method, arguments), in order; the class of a function is "".
        plugins: whether the library of plugins can be loaded.
    """

    def __init__(self, version: str, behaviour: Behaviour) -> None:
        self.api = table(version)
        self.behaviour = behaviour
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.plugins = True
        self.module = ModuleType("tensorrt")
        setattr(self.module, "__version__", self.api["version"])  # noqa: B010
        for name, members in self.api["enums"].items():
            if "." not in name:
                setattr(self.module, name, _enum(name, members))
        for name in self.api["classes"]:
            setattr(self.module, name, self._class(name))
        if "init_libnvinfer_plugins" in self.api["names"]:
            setattr(self.module, "init_libnvinfer_plugins", self._plugins)  # noqa: B010
        for name, members in self.api["enums"].items():
            if "." in name:
                owner, _, inner = name.partition(".")
                made = _enum(inner, members)
                setattr(getattr(self.module, owner), inner, made)

    def _plugins(self, logger: Any, namespace: str) -> bool:
        self.calls.append(("", "init_libnvinfer_plugins", (logger, namespace)))
        return self.plugins

    def called(self, method: str) -> list[tuple[Any, ...]]:
        """Arguments of each call of a method."""
        return [arguments for _, name, arguments in self.calls if name == method]

    def new(self, kind: str, /, **values: Any) -> Any:
        """An object of a class, with values that need not be attributes of the real one."""
        made = object.__new__(getattr(self.module, kind))
        made.__dict__.update(values)
        return made

    def _class(self, name: str) -> type:
        entry = self.api["classes"][name]
        if name in OPEN:
            return type(name, (), {"__init__": lambda self: None})
        body: dict[str, Any] = {
            "__getattr__": _getter(name, entry),
            "__setattr__": _setter(name, entry),
            "__init__": self._method(name, "__init__", entry["methods"].get("__init__", [])),
        }
        for method, signatures in entry["methods"].items():
            body.setdefault(method, self._method(name, method, signatures))
        if name == "IHostMemory":
            body["__bytes__"] = lambda memory: memory.__dict__["content"]
        return type(name, (), body)

    def _method(self, owner: str, name: str, signatures: list[str]) -> Callable[..., Any]:
        def method(instance: Any, *arguments: Any) -> Any:
            self.calls.append((owner, name, arguments))
            act = self.behaviour.get((owner, name))
            if act is not None:
                return act(instance, *arguments)
            return self._empty(signatures)

        return method

    def _empty(self, signatures: list[str]) -> Any:
        kind = re.sub(r".*-> ", "", signatures[0]) if signatures else "None"
        if kind in self.api["classes"]:
            return self.new(kind)
        return {"bool": True, "int": 0, "str": ""}.get(kind, [] if "ist[" in kind else None)


def _enum(name: str, members: dict[str, int]) -> Any:
    # Not IntEnum: members of the real ones do not equal numbers either.
    made = enum.Enum(name, members)  # type: ignore[misc]
    made.__int__ = lambda member: member.value  # type: ignore[attr-defined]
    return made


def _getter(name: str, entry: dict[str, Any]) -> Callable[[Any, str], Any]:
    def get(instance: Any, key: str) -> Any:
        if key in entry["attributes"]:
            return 0
        raise AttributeError(f"{name} has no {key}")

    return get


def _setter(name: str, entry: dict[str, Any]) -> Callable[[Any, str, Any], None]:
    def put(instance: Any, key: str, value: Any) -> None:
        if key not in entry["attributes"]:
            raise AttributeError(f"{name} has no {key}")
        instance.__dict__[key] = value

    return put
