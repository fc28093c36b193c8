"""The extras of pyproject.toml: those that messages and pages name exist, and go together."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
FLOORS = ("runtime", "train", "export", "benchmarks")


def named() -> set[tuple[str, str]]:
    """(file, extra) of every `tk-vision[…]` in our code and pages."""
    files = [file for floor in FLOORS for file in (ROOT / floor).rglob("*.py")]
    files += [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    return {
        (file.name, extra)
        for file in files
        for extras in re.findall(r"tk-vision\[([^\]]+)\]", file.read_text("utf-8"))
        for extra in extras.split(",")
        if re.fullmatch(r"[a-z0-9-]+", extra)  # not a name that is put in at run time
    }


def packages(extra: str) -> dict[str, str]:
    """Name -> the rest of its requirement."""
    found: dict[str, str] = {}
    for requirement in EXTRAS[extra]:
        name = re.split(r"[\[<>=;! ]", requirement)[0]
        found[name] = found.get(name, "") + requirement.removeprefix(name)
    return found


def test_extras__those_we_name_exist() -> None:
    found = named()
    assert {extra for _, extra in found} >= {"cpu", "gpu", "gpu-cu12", "jetson", "openvino"}
    assert [pair for pair in found if pair[1] not in EXTRAS] == []


@pytest.mark.parametrize("gpu", ["gpu", "gpu-cu12"])
def test_extras__cpu_and_gpu_exclude_each_other(gpu: str) -> None:
    (conflict,) = PROJECT["tool"]["uv"]["conflicts"]
    assert {item["extra"] for item in conflict} == {"cpu", "gpu", "gpu-cu12"}
    assert "onnxruntime" in packages("cpu")
    # Where onnxruntime-gpu has no wheel, the build for the CPU takes its place, never its side.
    assert packages(gpu).get("onnxruntime", "!= 'x86_64'").endswith("!= 'x86_64'")
    for other in set(EXTRAS) - {"cpu", "gpu", "gpu-cu12"}:
        assert not {"onnxruntime", "onnxruntime-gpu"} & set(packages(other)), other


def test_extras__one_cuda_each() -> None:
    new, old = packages("gpu"), packages("gpu-cu12")
    assert new["cuda-python"] == ">=13" and old["cuda-python"] == ">=12.8,<13"
    assert "tensorrt" in new and "tensorrt-cu12" in old
    # 1.26 was built for CUDA 12, 1.27 for CUDA 13, as their metadata says; 1.27 asks for a package
    # of CUDA that does not exist.
    assert new["onnxruntime-gpu"] == "[cuda,cudnn]>=1.28"
    assert old["onnxruntime-gpu"].endswith("<1.27; platform_machine == 'x86_64'")


def test_extras__jetson_needs_no_pytorch_and_no_engine_from_pip() -> None:
    found = packages("jetson")
    assert set(found) == {"faiss-cpu", "cuda-python", "onnx"}  # onnx: `tk plan` reads graphs
    assert "<13; python_version < '3.12'" in found["cuda-python"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_constraints__fit_every_extra_on_every_python(extra: str, python: str) -> None:
    """`pip install '.[EXTRA]' -c constraints.txt`, as the README has it; 3.10 is a Jetson's."""
    place = {"python_version": python, "python_full_version": f"{python}.0"}

    def active(text: str) -> Requirement | None:
        found = Requirement(text)
        return found if found.marker is None or found.marker.evaluate(place) else None

    pinned = map(active, (ROOT / "constraints.txt").read_text().splitlines())
    pins = {pin.name: pin.specifier for pin in pinned if pin}
    # A release of cuda-python asks for cuda-bindings of the same version.
    pins.setdefault("cuda-python", pins.get("cuda-bindings", SpecifierSet()))
    for text in (*PROJECT["project"]["dependencies"], *EXTRAS[extra]):
        wanted = active(text)
        if wanted and (version := str(pins.get(wanted.name, "")).removeprefix("==")):
            assert wanted.specifier.contains(version), f"{text}: {version} on Python {python}"
