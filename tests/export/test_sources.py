"""What `tk export SOURCE` may be, and what it says of everything else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from tk.export.cli import parse_size
from tk.export.sources.registry import MODEL_TYPES, SOURCES, find_source, open_source
from tk.runtime.errors import EnvironmentLacks, TkError
from tk.train.pretrained import hub
from tk.train.pretrained.hub import fetch, is_hub_id, licence_of
from tk.train.pretrained.load import load_pretrained
from tk.train.run.checkpoint import FORMAT, VERSION

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def folder(path: Path, model_type: str = "sam2", **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


@pytest.mark.parametrize("kind", list(MODEL_TYPES))
def test_find__folder_and_safetensors_by_model_type(kind: str, tmp_path: Path) -> None:
    model = folder(tmp_path / "m", kind, other__safetensors="x")
    for given in (model, model / "other.safetensors"):
        source = find_source(str(given))
        assert (source.path, source.task, source.name) == (given, MODEL_TYPES[kind], given.name)
        assert source.task in SOURCES and source.licence == "not stated"


def test_find__our_run_folder_takes_the_best_checkpoint(tmp_path: Path) -> None:
    keys = ("config", "classes", "image_spec", "crop_spec", "step", "epoch", "model")
    state = {**dict.fromkeys(keys, ""), "format": FORMAT, "version": VERSION}
    for name in ("checkpoint_last.pth", "checkpoint_best.pth"):
        torch.save({**state, "task": "embedder"}, tmp_path / name)
    assert find_source(str(tmp_path)).path == tmp_path / "checkpoint_best.pth"
    assert find_source(str(tmp_path / "checkpoint_last.pth")).task == "embedder"
    torch.save({**state, "task": "ssl"}, tmp_path / "other.pth")
    with pytest.raises(TkError, match="cannot export a checkpoint of task 'ssl'"):
        find_source(str(tmp_path / "other.pth"))


def test_find__run_of_a_library_s_model(tmp_path: Path) -> None:
    keys = ("config", "classes", "image_spec", "crop_spec", "step", "epoch", "model")
    state = {**dict.fromkeys(keys, ""), "format": FORMAT, "version": VERSION, "task": "sam2"}
    torch.save(state, tmp_path / "checkpoint_best.pth")
    with pytest.raises(TkError, match="not finished"):
        find_source(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for given in (tmp_path, tmp_path / "checkpoint_best.pth"):
        found = find_source(str(given))
        assert (found.path, found.task) == (tmp_path / "model", "sam2")
        assert found.size is None  # the model's own
    (tmp_path / "model" / "training.json").write_text('{"size": 256}')
    assert find_source(str(tmp_path)).size == (256, 256)


def test_find__original_sam2(tmp_path: Path) -> None:
    weights = {"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}
    torch.save(weights, tmp_path / "hiera.pt")
    assert find_source(str(tmp_path / "hiera.pt")).task == "sam2"
    (tmp_path / "damaged.pt").write_text("x")
    assert find_source(str(tmp_path / "damaged.pt"), sam2_cfg="sam2.1_hiera_t").task == "sam2"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "nothing", ("does not exist", "hub id", "mm-grounding-dino", "sam2_video")),
        (lambda d: d, ("nothing that can be exported", "checkpoint_best.pth", "config.json")),
        (lambda d: folder(d / "m", "bert"), ("does not know", "sam2_video", "'bert'")),
        (lambda d: _write(d / "a.safetensors", b""), ("no config.json beside it",)),
        (lambda d: _write(d / "a.pth", b"no weights"), ("cannot be read", "run folder")),
        (lambda d: _save(d / "a.pt", {"w": torch.zeros(1)}), ("not a checkpoint of tk",)),
    ],
)
def test_find__anything_else_says_what_is_accepted(
    make: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(TkError) as caught:
        find_source(str(make(tmp_path)))
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words), str(caught.value)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("sam2", {"prompt": "tool."}, ("--bake", "grounding-dino")),
        ("grounding-dino", {"sam2_cfg": "sam2.1_hiera_t"}, ("--sam2-cfg", "sam2")),
    ],
)
def test_open__an_option_of_another_kind_is_an_error(
    kind: str, options: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(TkError) as caught:
        open_source(folder(tmp_path / "m", kind), 2, **options)
    assert all(word in str(caught.value) for word in ("means nothing", *words))


@pytest.mark.parametrize(
    ("text", "size"), [("", None), ("800x1216", (800, 1216)), ("64", (64, 64)), ("8X9", (8, 9))]
)
def test_size__reads(text: str, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0x5", "axb", "1x2x3", "-3", "800 x", "1.5"])
def test_size__refuses(text: str) -> None:
    with pytest.raises(TkError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README__md": "---\nlicense: apache-2.0\ntags:\n - x\n---\n# Model"}, "apache-2.0"),
        ({"README__md": "---\nlicense: other\nlicense_name: sam\n---\n"}, "sam"),
        ({"README__md": "---\nlicense: other\n---\n", "LICENSE__txt": ""}, "see LICENSE.txt"),
        ({"README__md": "license: mit, says the text"}, "not stated"),
        ({"LICENSE": "text"}, "see LICENSE of the model"),
    ],
)
def test_licence(files: dict[str, str], licence: str, tmp_path: Path) -> None:
    assert licence_of(folder(tmp_path, **files)).startswith(licence)


def test_hub_id__is_not_a_path_that_is_nearly_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("IDEA-Research/grounding-dino-tiny") and is_hub_id("facebook/sam2.1-hiera-t")
    assert not any(map(is_hub_id, ("nothing", "/a/b", "./a", "a/b/c", "../b", "runs/", "a b/c")))
    (tmp_path / "runs").mkdir()
    assert not is_hub_id("runs/detector")  # a misspelt run, not an organisation


CARD = b"---\nlicense: apache-2.0\n---\n"
FILES = {
    "config.json": b'{"model_type": "sam2"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights again",
    "README.md": CARD,
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one good model, a gated one, and nothing else."""

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        if "/org/slow" in path:
            time.sleep(3)
        if "/org/gated" in path:
            return self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if "/org/good" not in path:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path:
            head = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            return self._answer(200, FILES[name], head, body)
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                for file, data in FILES.items()
            ]
            return self._answer(200, json.dumps(tree).encode(), {}, body)
        facts = {"id": "org/good", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}
        return self._answer(200, json.dumps(facts).encode(), {}, body)

    def _answer(self, code: int, data: bytes, head: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for key, value in {**head, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            with suppress(BrokenPipeError):  # a client that did not wait
                self.wfile.write(data)

    def log_message(self, *values: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine, an empty cache, and no folder that a hub id could name."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield served
    served.shutdown()
    served.server_close()


def test_hub__fetches_once_and_serves_from_the_cache(server: ThreadingHTTPServer) -> None:
    source = find_source("org/good")
    names = {file.name for file in source.path.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}  # no weights twice
    assert (source.task, source.licence, source.name) == ("sam2", "apache-2.0", "org/good")
    server.shutdown()
    assert fetch("org/good") == source.path


def test_hub__a_configuration_alone_in_the_cache_is_not_a_model(
    server: ThreadingHTTPServer,
) -> None:
    huggingface_hub.hf_hub_download("org/good", "config.json")
    assert (fetch("org/good") / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("org/gated", TkError, ("accepted its licence", "hf auth login", "local folder")),
        ("org/absent", TkError, ("no folder org/absent here", "spelling", "HF_TOKEN")),
    ],
)
def test_hub__gated_and_missing(
    name: str, kind: type[TkError], words: tuple[str, ...], server: ThreadingHTTPServer
) -> None:
    with pytest.raises(kind) as caught:
        fetch(name)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("way", ["dead", "slow", "offline"])
def test_hub__without_a_network_says_so_soon(
    way: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", way == "offline")
    if way == "dead":
        server.shutdown()
        server.server_close()
    started = time.monotonic()
    with pytest.raises(EnvironmentLacks) as caught:
        find_source("org/slow")
    assert time.monotonic() - started < 3
    words = ("org/slow could not be fetched", "cache", "give a local folder")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_pretrained__folder_and_file_of_any_name(
    resnet: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from_folder = load_pretrained(ResNetModel, resnet)
    (resnet / "model.safetensors").rename(resnet / "weights.safetensors")
    from_file = load_pretrained(ResNetModel, resnet / "weights.safetensors")
    assert not from_file.training and from_file.dtype == torch.float32
    for name, value in from_folder.state_dict().items():
        torch.testing.assert_close(from_file.state_dict()[name], value, rtol=0, atol=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("change", ["missing", "shape", "damaged"])
def test_pretrained__weights_that_are_not_all_there(change: str, resnet: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = resnet / "model.safetensors"
    weights = load_file(file)
    name = "encoder.stages.0.layers.0.layer.0.convolution.weight"
    if change == "missing":
        del weights[name]
    if change == "shape":
        weights[name] = torch.zeros(3)
    save_file(weights, file, {"format": "pt"})
    if change == "damaged":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TkError) as caught:
        load_pretrained(ResNetModel, resnet)
    words = {"missing": "lacks 1 weights", "shape": "cannot be loaded", "damaged": "cannot be"}
    assert words[change] in str(caught.value)
