"""Write the API of real TensorRT bindings as JSON, on a machine without a GPU or TensorRT.

Run by hand when a version is added: python dump.py BINDINGS.whl OUT.json
A bindings wheel (1 MB) imports beside dummy libraries that define the few symbols it links to;
nothing is called, so they need no content. Needs gcc and binutils, and the Python of the wheel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FULL = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "ITimingCache"),
    *("OnnxParser", "ParserError", "Runtime", "ICudaEngine", "IExecutionContext", "IHostMemory"),
    *("EngineInspector", "ILayer", "ITensor", "IProgressMonitor", "ILogger", "IOutputAllocator"),
)
"""Classes whose docstring signatures are kept."""

SKIPPED = re.compile(r"^(__|_pybind11)")


def main(wheel: Path, out: Path) -> None:
    """Unpack the wheel, make its dummy libraries, and dump it in a process that finds them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (library,) = folder.glob("*/*.so")
        make_dummies(library, folder / "lib")
        env = {**os.environ, "LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": str(folder)}
        package = library.parent.name
        done = subprocess.run(
            [sys.executable, __file__, "--dump", package], env=env, capture_output=True, check=True
        )
    out.write_text(compact(json.loads(done.stdout)) + "\n")


def make_dummies(library: Path, folder: Path) -> None:
    """Compile one empty library per NVIDIA library that `library` needs."""
    folder.mkdir()
    needed = re.findall(r"\[(libnv\S+)\]", _output("readelf", "-d", str(library)))
    symbols = re.findall(
        r" U ((?:create|get|init|_ZN?\d*nv)\S*)$",
        _output("nm", "-D", "--undefined-only", str(library)),
        re.MULTILINE,
    )
    source = folder / "dummy.c"
    source.write_text(
        "".join(f"void* {s}(void) {{ return 0; }}\n" for s in symbols if "@" not in s)
    )
    for name in needed:
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run(["gcc", *flags, str(source)], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def describe(module: Any) -> dict[str, Any]:
    """Enums with their values, classes with their methods and attributes, other names."""
    api: dict[str, Any] = {"version": module.__version__, "enums": {}, "classes": {}, "names": []}
    for name in sorted(vars(module)):
        value = getattr(module, name)
        if SKIPPED.match(name) or type(value).__name__ == "module":
            continue
        if isinstance(value, type):
            _describe_class(name, value, api)
        else:
            api["names"].append(name)
    return api


def _describe_class(name: str, kind: Any, api: dict[str, Any]) -> None:
    members: Any = getattr(kind, "__members__", None)
    if members is not None:
        api["enums"][name] = {key: int(value) for key, value in members.items()}
        return
    methods: dict[str, list[str]] = {}
    attributes = []
    for key in sorted(
        set(dir(kind)) - set(dir(object)) | ({"__init__"} if name in FULL else set())
    ):
        value = getattr(kind, key)
        if key != "__init__" and SKIPPED.match(key):
            continue
        if isinstance(value, type):
            if value.__qualname__ == f"{name}.{key}":
                _describe_class(f"{name}.{key}", value, api)
            attributes.append(key)
        elif callable(value):
            methods[key] = _signatures(value) if name in FULL else []
        else:
            attributes.append(key)
    bases = [base.__name__ for base in kind.__bases__ if base.__name__ != "pybind11_object"]
    api["classes"][name] = {"bases": bases, "methods": methods, "attributes": attributes}


def _signatures(function: Any) -> list[str]:
    """Lines of a pybind docstring that tell the arguments, without module names and self."""
    lines = re.findall(r"^(?:\d+\. )?\w+(\(.*)$", function.__doc__ or "", re.MULTILINE)
    found = [re.sub(r"\w+_bindings(\.\w+)??\.(?=[A-Z])", "", s) for s in lines if "->" in s]
    return [re.sub(r"^\((self|this|arg0): \S*?\w+(, |(?=\)))", "(", line) for line in found]


def compact(api: dict[str, Any]) -> str:
    """JSON with one line per enum and class: small, and readable in a diff."""

    def block(table: dict[str, Any]) -> str:
        rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
        return "{\n" + ",\n".join(rows) + "\n }"

    parts = [
        f' "{key}": {block(value) if isinstance(value, dict) else json.dumps(value)}'
        for key, value in api.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}"


if __name__ == "__main__":
    if sys.argv[1] == "--dump":
        json.dump(describe(__import__(sys.argv[2])), sys.stdout)
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
