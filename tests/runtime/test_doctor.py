"""`tk doctor` on pretended machines: what is missing and the very command that gets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.export.tensorrt.fake_cuda import FakeCuda

from tk.cli import run as run_cli
from tk.runtime import machine as machine_module
from tk.runtime.backends import cuda_stack
from tk.runtime.backends.cuda_stack import install_command
from tk.runtime.backends.onnxrt_cuda import session as onnxrt_cuda
from tk.runtime.backends.registry import BACKENDS
from tk.runtime.backends.tensorrt import library
from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.doctor import LIBRARIES, Line, examine

H200 = Gpu("NVIDIA H200", (9, 0), 139 << 30, (13, 0))
A10 = Gpu("NVIDIA A10", (8, 6), 24 << 30, (12, 6))
ORIN = Gpu("Orin", (8, 7), 8 << 30, (12, 6))
THOR = Gpu("Thor", (11, 0), 128 << 30, (13, 0))

# What the real packages said of themselves in November 2026.
ORT_13 = ("1.31.1", ["numpy>=1.21.6", 'nvidia-cudnn-cu13~=9.0; extra == "cudnn"'])
ORT_12 = ("1.25.1", ["numpy", 'nvidia-cudnn-cu12~=9.0; extra == "cudnn"'])
ORT_JETSON = ("1.23.0", ["numpy"])
TRT_13 = ("11.4.0.106", ["tensorrt_cu13==11.4.0.106"])
TRT_12 = ("11.4.0.106", ["tensorrt_cu12_libs==11.4.0.106"])
JETPACK_TRT: tuple[str, list[str]] = ("10.3.0", [])
FAISS_GPU = ("1.15.1", ["nvidia-cublas-cu12<13,>=12.6"])

Packages = dict[str, tuple[str, list[str]]]
SERVER_13: Packages = {
    "onnxruntime-gpu": ORT_13, "tensorrt": TRT_13, "tensorrt_cu13": TRT_13,
    "cuda-bindings": ("13.5.0", []), "faiss-gpu": FAISS_GPU,
}  # fmt: skip
SERVER_12: Packages = {
    "onnxruntime-gpu": ORT_12, "tensorrt_cu12": TRT_12, "cuda-bindings": ("12.9.10", []),
    "faiss-gpu": FAISS_GPU,
}  # fmt: skip
JETSON: Packages = {
    "tensorrt": JETPACK_TRT, "cuda-bindings": ("12.9.10", []), "faiss-cpu": ("1.15.1", []),
    "tokenizers": ("0.23.3", []),
}  # fmt: skip
CPU: Packages = {"onnxruntime": ("1.31.1", []), "faiss-cpu": ("1.15.1", [])}

Pretend = Callable[..., FakeCuda]
IMPORTS = {
    "onnxruntime-gpu": "onnxruntime", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt",
    "tensorrt_cu12": "tensorrt", "cuda-bindings": "cuda", "faiss-gpu": "faiss",
    "faiss-cpu": "faiss", "openvino": "openvino",
}  # fmt: skip


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretend:
    """Make this machine look like another one: GPUs, packages, Jetson Linux, processor."""

    def make(
        packages: Packages, gpus: tuple[Gpu, ...] = (), tegra: str = "", processor: str = "x86_64"
    ) -> FakeCuda:
        known = {"tk-vision": ("0.1.0", []), **packages}

        def distribution(name: str) -> Any:
            if name not in known:
                raise metadata.PackageNotFoundError(name)
            return SimpleNamespace(version=known[name][0], requires=known[name][1])

        modules = {IMPORTS[name] for name in packages if name in IMPORTS}
        modules |= {"cuda.bindings"} if "cuda" in modules else set()
        monkeypatch.setattr("importlib.metadata.distribution", distribution)
        monkeypatch.setattr("importlib.metadata.version", lambda name: distribution(name).version)
        real = util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name: (real("json") if name in modules else None) if name in ALL else real(name),
        )
        for module in (library, onnxrt_cuda, machine_module):
            monkeypatch.setattr(module, "find_gpus", lambda: list(gpus))
        monkeypatch.setattr("platform.machine", lambda: processor)
        file = tmp_path / "nv_tegra_release"
        if tegra:
            file.write_text(tegra)
        monkeypatch.setattr(machine_module, "TEGRA", file)
        monkeypatch.setattr("shutil.which", lambda name: None)
        cuda = FakeCuda()
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda.module)
        return cuda

    return make


ALL = {*IMPORTS.values(), "cuda.bindings", "tensorrt_lean"}


def by_name(lines: list[Line]) -> dict[str, Line]:
    return {line.name: line for line in lines if line.topic != "install"}


def commands(lines: list[Line]) -> list[str]:
    return [line.text for line in lines if line.topic == "install"]


def missing(lines: list[Line]) -> set[str]:
    return {line.name for line in lines if line.state == "missing"}


def test_doctor__plain_cpu(pretend: Pretend) -> None:
    pretend(CPU)
    lines = examine()
    assert missing(lines) == set()
    found = by_name(lines)
    assert found["tensorrt"].state == found["onnxruntime-cuda"].state == "none"
    assert found["onnxruntime-cpu"].text == "onnxruntime 1.31.1, runs onnx on cpu"
    assert "pip install 'tk-vision[openvino]'" in found["openvino-cpu"].text
    assert commands(lines) == [
        "pip install 'tk-vision[cpu]'",
        "pip install 'tk-vision[openvino]'",
    ]


def test_doctor__empty_environment(pretend: Pretend) -> None:
    pretend({}, processor="aarch64")
    lines = examine()
    assert missing(lines) == {"onnxruntime-cpu", "faiss"}
    for name in ("onnxruntime-cpu", "faiss"):
        assert "pip install 'tk-vision[cpu]'" in by_name(lines)[name].text
    assert commands(lines) == ["pip install 'tk-vision[cpu]'"]


@pytest.mark.parametrize(
    ("driver", "python", "extra"),
    [
        ((13, 0), (3, 11), "gpu"),
        ((13, 0), (3, 10), "gpu-cu12"),  # onnxruntime-gpu of CUDA 13 has no wheel for it
        ((12, 6), (3, 12), "gpu-cu12"),
    ],
)
def test_install_command__by_driver_and_python(
    driver: tuple[int, int], python: tuple[int, int], extra: str
) -> None:
    assert install_command(driver, python) == f"pip install 'tk-vision[{extra}]'"


@pytest.mark.parametrize(
    ("gpu", "packages", "command"),
    [
        (H200, SERVER_13, install_command((13, 0))),
        (H200, SERVER_12, install_command((13, 0))),  # an older CUDA runs too
        (A10, SERVER_12, "pip install 'tk-vision[gpu-cu12]'"),
    ],
)
def test_doctor__server(pretend: Pretend, gpu: Gpu, packages: Packages, command: str) -> None:
    pretend(packages, (gpu,))
    lines = examine()
    assert missing(lines) == set() and commands(lines) == [command]
    found = by_name(lines)
    assert gpu.name in found["GPU 0"].text
    assert f"driver for CUDA {gpu.driver[0]}.{gpu.driver[1]}" in found["GPU 0"].text
    assert "11.4.0.106, runs plan on cuda" in found["tensorrt"].text
    assert packages["onnxruntime-gpu"][0] in found["onnxruntime-cuda"].text
    assert found["faiss-gpu"].text.startswith("1.15.1")


def test_doctor__packages_for_a_newer_cuda_than_the_drivers(pretend: Pretend) -> None:
    pretend(SERVER_13, (A10,))
    lines = examine()
    assert missing(lines) == {"tensorrt", "onnxruntime-cuda"}
    for name, package in (("tensorrt", "tensorrt 11.4"), ("onnxruntime-cuda", "onnxruntime-gpu 1")):
        text = by_name(lines)[name].text
        assert text.startswith(package)
        assert "is for CUDA 13, the driver runs 12.6" in text
        assert text.endswith("pip install 'tk-vision[gpu-cu12]'")


@pytest.mark.parametrize(
    ("taken", "name", "words"),
    [
        ("tensorrt_cu12", "tensorrt", "TensorRT is not installed: pip install 'tk-vision[gpu]'"),
        ("cuda-bindings", "tensorrt", "cuda-python is not installed"),
        ("onnxruntime-gpu", "onnxruntime-cuda", "onnxruntime is not installed"),
        ("faiss-gpu", "faiss", "FAISS is not installed"),
    ],
)
def test_doctor__server_lacks_one(pretend: Pretend, taken: str, name: str, words: str) -> None:
    pretend({key: value for key, value in SERVER_12.items() if key != taken}, (A10,))
    assert words in by_name(examine())[name].text and name in missing(examine())


def test_doctor__server_with_the_builds_for_the_cpu(pretend: Pretend) -> None:
    pretend(CPU, (A10,))
    found = by_name(examine())
    assert found["onnxruntime-cuda"].state == "missing"
    assert "pip uninstall onnxruntime, then pip install 'tk-vision[gpu-cu12]'" in (
        found["onnxruntime-cuda"].text
    )
    assert "faiss-gpu searches on the GPU" in found["faiss-cpu"].text


def test_doctor__both_builds(pretend: Pretend) -> None:
    pretend({**SERVER_12, **CPU}, (A10,))
    found = by_name(examine())
    for name in ("onnxruntime-cuda", "onnxruntime-cpu"):
        assert "overwrite each other: pip uninstall onnxruntime onnxruntime-gpu" in found[name].text
    assert "pip uninstall faiss-cpu faiss-gpu" in found["faiss"].text


@pytest.mark.parametrize(
    ("tegra", "jetpack", "tensorrt", "state"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081", "6.1 or 6.2", "10.3", "ok"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "6.0", "8.6.2", "ok"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "7.0 or newer", "10.13 or newer", "ok"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "5 or older", "too old", "missing"),
        ("something else", "5 or older", "too old", "missing"),
    ],
)
def test_doctor__jetson(
    pretend: Pretend, tegra: str, jetpack: str, tensorrt: str, state: str
) -> None:
    pretend(JETSON, (ORIN,), tegra, "aarch64")
    lines = examine()
    found = by_name(lines)
    assert f"JetPack {jetpack}" in found["Jetson"].text and tensorrt in found["Jetson"].text
    assert found["Jetson"].state == state
    assert found["tensorrt"].state == "ok" and "tensorrt 10.3.0" in found["tensorrt"].text
    # Neither ONNX Runtime nor PyTorch is wanted there.
    assert found["onnxruntime-cuda"].state == found["onnxruntime-cpu"].state == "none"
    assert found["torch"].state == "none"
    assert commands(lines) == [
        "sudo apt install nvidia-jetpack",
        "python3 -m venv --system-site-packages tk && . tk/bin/activate",
        "pip install 'tk-vision[jetson,text]'",
    ]


def test_doctor__jetson_whose_environment_hides_tensorrt(pretend: Pretend) -> None:
    pretend({k: v for k, v in JETSON.items() if k != "tensorrt"}, (ORIN,), "# R36, REVISION: 4.0")
    found = by_name(examine())
    assert found["tensorrt"].state == "missing"
    assert "--system-site-packages" in found["tensorrt"].text


def test_doctor__jetson_with_cuda_python_of_the_other_cuda(pretend: Pretend) -> None:
    pretend({**JETSON, "cuda-bindings": ("13.5.0", [])}, (ORIN,), "# R36, REVISION: 4.0")
    text = by_name(examine())["tensorrt"].text
    assert "cuda-bindings 13.5.0 is for CUDA 13, the driver runs 12.6" in text
    pretend({**JETSON, "cuda-bindings": ("13.5.0", [])}, (THOR,), "# R38, REVISION: 2.0")
    assert by_name(examine())["tensorrt"].state == "ok"


def test_doctor__tries_cuda_with_a_few_bytes(pretend: Pretend) -> None:
    cuda = pretend(SERVER_13, (H200, H200))
    line = by_name(examine())["CUDA"]
    assert (line.topic, line.state) == ("gpu", "ok")
    assert line.text == "memory, a copy there and back on GPU 0, 1"
    assert cuda.live == {} and cuda.device == 1
    assert "CUDA" not in by_name(doctor_on(pretend, CPU))
    assert "CUDA" not in by_name(doctor_on(pretend, CPU, (H200,))), "no cuda-python: said elsewhere"
    assert "CUDA" not in by_name(doctor_on(pretend, SERVER_13, (A10,))), "of a CUDA too new: too"


def doctor_on(pretend: Pretend, *machine: Any) -> list[Line]:
    pretend(*machine)
    return examine()


def test_doctor__cuda_that_does_not_work_is_told(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pretend(JETSON, (ORIN,), "# R36, REVISION: 4.0", "aarch64")
    cuda.pins = False
    line = by_name(examine())["CUDA"]
    assert line.state == "missing" and "\n" not in line.text
    assert line.text.startswith("GPU 0: CUDA failed while pinning")
    assert "cudaErrorMemoryAllocation" in line.text and cuda.live == {}

    cuda.pins, cuda.free = True, 0
    assert "not enough GPU memory for a test" in by_name(examine())["CUDA"].text
    cuda.free = 1 << 20
    monkeypatch.setattr(cuda.module, "cudaMemcpyAsync", lambda *_: (cuda.error.cudaSuccess,))
    assert by_name(examine())["CUDA"].text == "GPU 0: other numbers came back from it"

    def fail(device: int) -> Any:
        raise RuntimeError("Function cudaSetDevice not found")

    monkeypatch.setattr(cuda.module, "cudaSetDevice", fail)
    assert "cudaSetDevice not found" in by_name(examine())["CUDA"].text


def test_doctor__old_driver(pretend: Pretend) -> None:
    pretend(SERVER_12, (Gpu("K80", (3, 7), 1 << 30, (11, 4)),))
    lines = examine()
    assert commands(lines) == [cuda_stack.OLDEST_DRIVER]
    assert "for CUDA 12, the driver runs 11.4" in by_name(lines)["tensorrt"].text


@pytest.mark.parametrize(
    ("packages", "name", "cuda"),
    [
        ({"onnxruntime-gpu": ORT_13}, "onnxruntime-gpu", 13),
        ({"onnxruntime-gpu": ORT_12}, "onnxruntime-gpu", 12),
        ({"onnxruntime-gpu": ORT_JETSON}, "onnxruntime-gpu", 0),
        ({"tensorrt": JETPACK_TRT}, "tensorrt", 0),
        ({"tensorrt_cu12": ("10.3.0", [])}, "tensorrt_cu12", 12),
        ({"tensorrt": TRT_13}, "tensorrt", 13),
        ({"faiss-gpu": FAISS_GPU}, "faiss-gpu", 12),
        ({"cuda-bindings": ("13.5.0", [])}, "cuda-bindings", 13),
        ({}, "tensorrt", 0),
    ],
)
def test_cuda_stack__what_a_package_is_for(
    pretend: Pretend, packages: Packages, name: str, cuda: int
) -> None:
    pretend(packages)
    version = packages[name][0] if packages else ""
    assert cuda_stack.found_cuda(name) == (version, cuda)


def test_doctor__json_and_text(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(SERVER_13, (A10,))
    monkeypatch.setattr(sys, "argv", ["tk", "doctor", "--json"])
    with pytest.raises(SystemExit) as stopped:
        run_cli()
    assert not stopped.value.code
    lines = [Line(**line) for line in json.loads(capsys.readouterr().out)]
    assert lines == examine()
    assert {line.state for line in lines} <= {"ok", "missing", "none", "advice"}
    monkeypatch.setattr(sys, "argv", ["tk", "doctor"])
    with pytest.raises(SystemExit):
        run_cli()
    text = capsys.readouterr().out
    assert "MISSING  back end  tensorrt" in text
    assert "This is a computer with an NVIDIA GPU. What runs models on one:" in text
    assert "\n  pip install 'tk-vision[gpu-cu12]'  # " in text


def test_doctor__knows_every_back_end() -> None:
    assert set(LIBRARIES) == set(BACKENDS)
