"""Which platform this is: a plan of another one does not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tk.runtime import machine

COMPATIBLE = b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0"


@pytest.mark.parametrize(
    ("processor", "release", "tree", "expected"),
    [
        ("x86_64", False, b"", "linux-x86_64"),
        ("aarch64", False, b"", "linux-aarch64"),
        ("aarch64", False, b"nvidia,p3880\0arm,sbsa\0", "linux-aarch64"),
        ("aarch64", True, b"", "tegra-aarch64"),
        ("aarch64", False, COMPATIBLE, "tegra-aarch64"),  # in a container the release is not there
    ],
)
def test_platform__jetson_is_told_from_other_arm(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    processor: str,
    release: bool,
    tree: bytes,
    expected: str,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    files = {"TEGRA": b"# R36" if release else b"", "DEVICE_TREE": tree}
    for name, content in files.items():
        monkeypatch.setattr(machine, name, tmp_path / name)
        if content:
            (tmp_path / name).write_bytes(content)
    assert machine.platform_name() == expected
