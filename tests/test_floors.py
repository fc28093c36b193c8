"""The floors: who may import whom, no cycles, and a runtime that never needs PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"cli": 0, "runtime": 0, "train": 1, "export": 2, "benchmarks": 3}
FORBIDDEN = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "pydantic")

BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
"""
"""Source that makes training packages impossible to import."""


def _modules() -> dict[str, Path]:
    found = {}
    for folder in ("runtime", "train", "export", "benchmarks"):
        for file in sorted((ROOT / folder / "tk").rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


def _imports(file: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_floors__no_import_goes_up() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, file in _modules().items()
        for imported in _imports(file)
        if imported.startswith("tk.")
        and FLOORS[imported.split(".")[1]] > FLOORS[name.split(".")[1]]
        and name.split(".")[1] != "cli"
    ]
    assert not wrong


def test_floors__cli_imports_packages_only_by_name() -> None:
    for name, file in _modules().items():
        if name.startswith("tk.cli"):
            top = {n for n in _imports(file, top_level=True) if n.startswith("tk.")}
            assert all(n.startswith("tk.cli") for n in top), (name, top)


def test_floors__no_cycles() -> None:
    modules = _modules()
    graph = defaultdict(set)
    for name, file in modules.items():
        graph[name] = {n for n in _imports(file) if n in modules and n != name}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join((*trail, name))
        if state.get(name) == 2:
            return
        state[name] = 1
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        state[name] = 2

    for name in modules:
        visit(name, ())


def test_runtime__imports_without_training_packages() -> None:
    names = [n for n in _modules() if n.startswith("tk.runtime") or n == "tk.cli"]
    assert len(names) > 20
    code = (
        BLOCK + "import importlib\n" + "".join(f"importlib.import_module({n!r})\n" for n in names)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("annotate", {"--bundles": "bundles", "--gallery": "gallery"}),
        ("classify", {"--bundle": "bundles/classifier"}),
    ],
)
def test_runtime__works_without_training_packages(
    command: str, options: dict[str, str], tiny_world: Path, tmp_path: Path
) -> None:
    from PIL import Image
    from tests import tiny_bundles

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(tiny_bundles.blob((255, 9, 9))).save(photos / "a.png")
    arguments = [command, str(photos), str(tmp_path / "out")]
    for option, path in options.items():
        arguments += [option, str(tiny_world / path)]
    code = BLOCK + f"sys.argv[1:] = {arguments!r}\nfrom tk.cli import run\nrun()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "красный" in (tmp_path / "out" / "predictions.json").read_text("utf-8").lower()


def test_import_name__no_other_distribution_owns_tk() -> None:
    from importlib.metadata import packages_distributions

    assert set(packages_distributions().get("tk", ["tk-vision"])) == {"tk-vision"}


@pytest.mark.parametrize("name", ["tk.runtime.bundle", "tk.runtime.cli"])
def test_runtime__engines_are_imported_on_use(name: str) -> None:
    code = f"import sys, {name}; print([m for m in ('onnxruntime', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
