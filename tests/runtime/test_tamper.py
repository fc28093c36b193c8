"""A bundle with a graph and a plan, each of its files tampered with: no byte reaches an engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_bundles
from tests.export.tensorrt.world import GPU, World

from tk.runtime.backends.onnxrt import session as onnxrt
from tk.runtime.backends.onnxrt.library import load_graph
from tk.runtime.bundle import MANIFEST, Bundle
from tk.runtime.errors import CheckFailed, TkError
from tk.runtime.files import read_json, write_json
from tk.runtime.manifest import Artifact, manifest_from_json

PLAN = "plans/model.fp16.trt10.13-sm90.plan"
CONTENT = b"ftrt\x0a\x0d\x03\x09" + bytes(range(64))
FILES = ("model.fp32.onnx", PLAN, "parity.json", "probe.npz", MANIFEST)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with TensorRT 10.13 and a GPU, whose calls are written down."""
    made = World("10.13")
    made.spec = {"image": (True, "UINT8", (-1, 64, 64, 3)), "embedding": (False, "FLOAT", (-1, 3))}
    made.install(monkeypatch)
    return made


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Graphs that reached ONNX Runtime."""
    seen: list[bytes] = []

    def load(data: bytes, *rest: Any) -> Any:
        seen.append(data)
        return load_graph(data, *rest)

    monkeypatch.setattr(onnxrt, "load_graph", load)
    return seen


@pytest.fixture
def bundle(tiny_world: Path, tmp_path: Path, world: World) -> Path:
    """The tiny embedder with a plan for the pretended machine."""
    folder = Path(shutil.copytree(tiny_world / "bundles" / "embedder", tmp_path / "embedder"))
    facts = {"tensorrt": world.trt.__version__, "sm": GPU.sm, "gpu": GPU.name}
    plan = Artifact(PLAN, "", 0, "model", "plan", "fp16", facts)
    tiny_bundles.add_artifact(folder, plan, CONTENT, {"tensorrt": True})
    return folder


def deserialized(world: World) -> list[bytes]:
    return [arguments[0] for arguments in world.fake.called("deserialize_cuda_engine")]


def use(folder: Path) -> None:
    """What `tk annotate` does: the plan first, then the graph."""
    opened = Bundle.open(folder)
    opened.session().close()
    opened.session(precision="fp32").close()


def test_tamper__intact_bundle_is_used(bundle: Path, world: World, graphs: list[bytes]) -> None:
    """Else the tests below would pass on a bundle that nobody can open."""
    use(bundle)
    assert deserialized(world) == [CONTENT]
    assert graphs == [(bundle / "model.fp32.onnx").read_bytes()]
    assert world.runtime.engine_host_code_allowed is False


def flip(place: float) -> Callable[[Path], None]:
    def tamper(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        file.write_bytes(bytes(data))

    return tamper


def turn_into_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def turn_into_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/nowhere")


TAMPERS: dict[str, Callable[[Path], Any]] = {
    "first byte": flip(0),
    "middle byte": flip(0.5),
    "last byte": flip(1),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "a folder": turn_into_folder,
    "dangling link": turn_into_link,
}


@pytest.mark.parametrize("how", TAMPERS)
@pytest.mark.parametrize("name", FILES)
def test_tamper__file(bundle: Path, world: World, graphs: list[bytes], name: str, how: str) -> None:
    TAMPERS[how](bundle / name)
    with pytest.raises(TkError):
        use(bundle)
    assert deserialized(world) == [] and graphs == []


@pytest.mark.parametrize("name", ["model.fp32.onnx", PLAN])
def test_tamper__after_opening(bundle: Path, world: World, graphs: list[bytes], name: str) -> None:
    opened = Bundle.open(bundle)
    flip(0.5)(bundle / name)
    with pytest.raises(CheckFailed, match="changed"):
        opened.session(precision="fp16" if name == PLAN else "fp32")
    assert deserialized(world) == [] and graphs == []


def test_tamper__files_change_places(bundle: Path, world: World, graphs: list[bytes]) -> None:
    plan, graph = bundle / PLAN, bundle / "model.fp32.onnx"
    one, other = plan.read_bytes(), graph.read_bytes()
    plan.write_bytes(other)
    graph.write_bytes(one)
    with pytest.raises(CheckFailed, match="changed"):
        use(bundle)
    assert deserialized(world) == [] and graphs == []


def test_tamper__extra_files_are_never_read(
    bundle: Path, world: World, graphs: list[bytes]
) -> None:
    for name in ("plans/model.int8.trt10.13-sm90.plan", "model.int8.onnx", "model.fp32.onnx.data"):
        (bundle / name).write_bytes(b"EVIL")
    use(bundle)
    assert deserialized(world) == [CONTENT] and b"EVIL" not in graphs


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*path, key))
        else:
            yield (*path, key)


def test_tamper__every_value_of_the_manifest(
    bundle: Path, world: World, graphs: list[bytes]
) -> None:
    text = (bundle / MANIFEST).read_text()
    places = list(leaves(json.loads(text)))
    assert len(places) > 40
    for place in places:
        value = json.loads(text)
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = "other"
        (bundle / MANIFEST).write_text(json.dumps(value))
        with pytest.raises(TkError):
            use(bundle)
    assert deserialized(world) == [] and graphs == []


def sign_again(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest as somebody who knows how its hash is made."""
    value = read_json(bundle / MANIFEST)
    change(value)
    body = {key: item for key, item in value.items() if key not in ("sha256", "schema")}
    made = {**value, "sha256": ""}
    try:
        manifest_from_json(made, Path("x"))
    except CheckFailed as error:
        made["sha256"] = error.found.removeprefix("sha256 ")
    assert body["artifacts"] and made["sha256"]
    write_json(bundle / MANIFEST, made)


def plan_of(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in value["artifacts"] if item["kind"] == "plan")
    return found


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"tensorrt": "10.3.0"}, "built by TensorRT 10.3.0"),
        ({"tensorrt": "8.6.1"}, "built by TensorRT 8.6.1"),
        ({"tensorrt": "11.4.0"}, "built by TensorRT 11.4.0"),
        ({"tensorrt": ["10.13.3"]}, "does not say"),
        ({"sm": "sm87", "gpu": "Orin"}, "built for sm87"),
        ({"sm": None}, "does not say"),
    ],
)
def test_tamper__plan_of_another_version_or_gpu(
    bundle: Path, world: World, graphs: list[bytes], facts: dict[str, Any], said: str
) -> None:
    sign_again(bundle, lambda value: plan_of(value)["facts"].update(facts))
    opened = Bundle.open(bundle)
    with pytest.warns(UserWarning, match="is not used"):
        opened.session().close()  # the graph, with a warning
    with pytest.warns(UserWarning, match="is not used"), pytest.raises(TkError) as caught:
        opened.session(backend="tensorrt")
    assert said in str(caught.value) and "tk plan" in str(caught.value)
    assert deserialized(world) == [] and len(graphs) == 1


@pytest.mark.parametrize("path", ["../plan", "/etc/passwd", "plans/../../x"])
def test_tamper__plan_outside_of_the_bundle(
    bundle: Path, world: World, graphs: list[bytes], path: str
) -> None:
    sign_again(bundle, lambda value: plan_of(value).update(file=path))
    with pytest.raises(CheckFailed, match="outside"):
        use(bundle)
    assert deserialized(world) == [] and graphs == []


def test_tamper__a_verdict_without_a_gate(bundle: Path, world: World, graphs: list[bytes]) -> None:
    """A plan that no gate judged is not taken, and `parity.json` cannot be edited to say so."""
    parity = read_json(bundle / "parity.json")
    parity["verdicts"].append({"file": "x", "backend": "tensorrt", "passed": True})
    write_json(bundle / "parity.json", parity)
    with pytest.raises(CheckFailed, match=r"parity\.json was changed"):
        use(bundle)
    opened = Bundle(bundle, manifest_from_json(read_json(bundle / MANIFEST), bundle), {})
    with pytest.raises(TkError, match="nothing proved"):
        opened.session()
    assert deserialized(world) == [] and graphs == []
