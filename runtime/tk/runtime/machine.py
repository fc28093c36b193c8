"""What kind of machine this is: a plain CPU, a computer with an NVIDIA GPU, or a Jetson."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from tk.runtime.backends.cuda_stack import install_command
from tk.runtime.backends.tensorrt.gpu import Gpu, find_gpus

TEGRA = Path("/etc/nv_tegra_release")
"""The file that NVIDIA's Linux for Jetson (L4T) tells its version in."""

DEVICE_TREE = Path("/proc/device-tree/compatible")
"""What the board says it is, names ended by a zero byte; also there in a container."""

JETPACKS: tuple[tuple[tuple[int, int], str, str], ...] = (
    ((38, 0), "7.0 or newer", "10.13 or newer"),
    ((36, 4), "6.1 or 6.2", "10.3"),
    ((36, 0), "6.0", "8.6.2"),
    ((0, 0), "5 or older", "8.5 or older, which is too old: install JetPack 6"),
)
"""Oldest L4T, the JetPack that it belongs to, the TensorRT that comes with it; newest first."""


@dataclass(frozen=True)
class Machine:
    """What decides which packages go together.

    Attributes:
        gpus: that CUDA may use.
        l4t: version of Jetson Linux, (36, 4); None on any other machine.
        processor: `x86_64` or `aarch64`, as the system says it.
    """

    gpus: tuple[Gpu, ...]
    l4t: tuple[int, int] | None
    processor: str

    @property
    def jetpack(self) -> tuple[str, str]:
        """JetPack and the TensorRT that comes with it; empty on other machines."""
        if self.l4t is None:
            return "", ""
        return next((name, trt) for oldest, name, trt in JETPACKS if self.l4t >= oldest)

    @property
    def kind(self) -> str:
        """For a heading."""
        if self.l4t is not None:
            return "a Jetson"
        return "a computer with an NVIDIA GPU" if self.gpus else "a computer without a GPU"

    def recipe(self) -> list[tuple[str, str]]:
        """Commands that make this machine complete, and what each is for."""
        if self.l4t is not None:
            return [
                ("sudo apt install nvidia-jetpack", "TensorRT, if the image came without it"),
                (
                    "python3 -m venv --system-site-packages tk && . tk/bin/activate",
                    "the environment sees JetPack's TensorRT",
                ),
                (
                    "pip install 'tk-vision[jetson,text]'",
                    "search, CUDA calls, tk plan, prompts; no PyTorch",
                ),
            ]
        if self.gpus:
            return [
                (install_command(self.gpus[0].driver), "TensorRT, ONNX Runtime and FAISS for it")
            ]
        commands = [("pip install 'tk-vision[cpu]'", "ONNX Runtime and FAISS")]
        if self.processor in ("x86_64", "AMD64"):
            commands.append(("pip install 'tk-vision[openvino]'", "int8 is fastest there"))
        return commands


def this_machine() -> Machine:
    """Look; loads the driver and nothing else."""
    return Machine(tuple(find_gpus()), _l4t(), platform.machine())


def platform_name() -> str:
    """What is one platform to TensorRT: `linux-x86_64`, `linux-aarch64`, a Jetson `tegra-aarch64`.

    A plan runs on the platform that built it only, whatever else fits.
    """
    tree = DEVICE_TREE.read_bytes() if DEVICE_TREE.is_file() else b""
    tegra = TEGRA.is_file() or b"tegra" in tree
    return f"{'tegra' if tegra else platform.system().lower()}-{platform.machine()}"


def _l4t() -> tuple[int, int] | None:
    """Read `# R36 (release), REVISION: 4.3, …`."""
    if not TEGRA.is_file():
        return None
    found = re.search(r"R(\d+).*?REVISION:\s*(\d+)", TEGRA.read_text(errors="replace"))
    return (int(found[1]), int(found[2])) if found else (0, 0)
