"""Every attribute of TensorRT and CUDA that we use exists in the real bindings, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.export.tensorrt.tables import (
    CUDA_VERSIONS,
    VERSIONS,
    argument_counts,
    cuda_table,
    member,
    table,
)
from tests.export.tensorrt.usage import Use, find_cuda_uses, find_member_names, find_uses

ROOT = Path(__file__).parents[3]
RUNTIME = ROOT / "runtime/tk/runtime/backends/tensorrt"
EXPORT = ROOT / "export/tk/export/tensorrt"
FILES = sorted([*RUNTIME.glob("*.py"), *EXPORT.glob("*.py")])
LEAN_LACKS = {"LayerInformationFormat"}


def problems(use: Use, versions: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with one use in these versions."""
    having = [v for v in versions if not use.owner or _has_owner(v, use.owner)]
    kinds = {version: member(table(version), use.owner, use.name) for version in having}
    text = f"{use.place}: {use.owner or 'trt'}.{use.name}"
    if use.optional:
        if not any(kinds.values()):
            yield f"{text} exists nowhere"
        return
    if not having or (use.owner in ALWAYS and len(having) < len(versions)):
        yield f"{text}: no {use.owner} in some versions"
    for version, kind in kinds.items():
        if not kind:
            yield f"{text} does not exist in {version}"
        elif kind == "method" and use.arguments >= 0 and use.name != "__init__":
            counts = argument_counts(table(version)["classes"][use.owner]["methods"][use.name])
            if counts and use.arguments not in counts:
                yield f"{text} takes {sorted(counts)} arguments in {version}, not {use.arguments}"


ALWAYS = {"Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "Runtime", "OnnxParser"}


def _has_owner(version: str, owner: str) -> bool:
    return owner in table(version)["classes"] or owner in table(version)["enums"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_api__all_we_use_exists(file: Path) -> None:
    uses = find_uses(file.read_text(), file.name)
    assert [text for use in uses for text in problems(use, VERSIONS)] == []


@pytest.mark.parametrize("file", sorted(RUNTIME.glob("*.py")), ids=lambda file: file.stem)
def test_api__runtime_needs_no_more_than_the_lean_library(file: Path) -> None:
    uses = find_uses(file.read_text(), file.name)
    found = [text for use in uses if not use.optional for text in problems(use, ("lean-11.4",))]
    assert found == []


def test_api__uses_are_found() -> None:
    """The collector sees the calls that matter; else the test above would pass on nothing."""
    uses = {
        (use.owner, use.name) for file in FILES for use in find_uses(file.read_text(), file.name)
    }
    for wanted in (
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("OnnxParser", "parse_from_file"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_output_allocator"),
        ("EngineInspector", "get_engine_information"),
        ("ITimingCache", "combine"),
        ("ILayer", "get_output"),
        ("ILogger.Severity", "ERROR"),
        ("ProfilingVerbosity", "DETAILED"),
        ("", "IProgressMonitor"),
    ):
        assert wanted in uses
    assert len(uses) > 60


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("config.max_workspace = 1", "does not exist in 8.6"),
        ("trt.BuilderFlag.FP17", "does not exist"),
        ("trt.BuilderFlag.FP16", "does not exist in 11"),
        ("self.trt.ProfilingVerbosity.EVERYTHING", "does not exist"),
        ("self._engine.get_binding_name(0)", "does not exist in 10.3"),
        ("getattr(trt, 'IProgressMonitr', None)", "exists nowhere"),
        ("hasattr(trt.BuilderFlag, 'FP16X')", "exists nowhere"),
        ("context.execute_async_v3()", "takes [1] arguments"),
        ("builder.build_engine(network, config)", "does not exist in 10.3"),
    ],
)
def test_api__a_made_up_attribute_is_found(source: str, said: str) -> None:
    found = [text for use in find_uses(source, "x.py") for text in problems(use, VERSIONS)]
    assert any(said in text for text in found), found


@pytest.mark.parametrize("source", ["getattr(trt.BuilderFlag, 'FP16', None)", "trt.Logger", ""])
def test_api__what_exists_is_let_pass(source: str) -> None:
    assert [t for use in find_uses(source, "x.py") for t in problems(use, VERSIONS)] == []


@pytest.mark.parametrize("name", ["flags.py", "precision.py", "build.py", "bind.py"])
def test_api__members_looked_up_by_string_exist(name: str) -> None:
    known = {
        key
        for version in VERSIONS
        for members in table(version)["enums"].values()
        for key in members
    }
    names = find_member_names((EXPORT / name).read_text())
    assert names and names <= known


def test_api__types_of_tensors_exist() -> None:
    from tk.runtime.backends.tensorrt.dtypes import NUMPY_OF

    for version in VERSIONS:
        missing = set(NUMPY_OF) - set(table(version)["enums"]["DataType"])
        assert missing == ({"INT64"} if version == "8.6" else set())


def cuda_problems(source: str, version: str) -> list[str]:
    """What of CUDA's runtime is used and missing, or called with another number of arguments."""
    api, found = cuda_table(version), []
    for use in find_cuda_uses(source, "cuda.py"):
        text = f"{use.place}: {use.owner}.{use.name}"
        if use.owner:
            if use.name not in api["enums"][use.owner]:
                found.append(f"{text} does not exist")
        elif use.name in api["functions"]:
            signature = api["functions"][use.name]
            counts = argument_counts([signature[signature.index("(") :]])
            if use.arguments >= 0 and use.arguments not in counts:
                found.append(f"{text} takes {counts} arguments")
        elif use.name not in api["enums"] and use.name not in api["constants"]:
            found.append(f"{text} does not exist")
    return found


@pytest.mark.parametrize("version", CUDA_VERSIONS)
def test_api__cuda_calls_exist(version: str) -> None:
    source = (RUNTIME / "cuda.py").read_text()
    assert len(find_cuda_uses(source, "cuda.py")) > 20
    assert cuda_problems(source, version) == []


@pytest.mark.parametrize(
    "source",
    ["rt.cudaMallocs(1)", "rt.cudaMalloc(1, 2)", "rt.cudaMemcpyKind.cudaMemcpySideways"],
)
def test_api__a_made_up_cuda_call_is_found(source: str) -> None:
    assert cuda_problems(source, "13.5")
