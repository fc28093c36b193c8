"""The command line: fast help, teaching help, exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tk.cli import COMMANDS

HEAVY = ("torch", "onnxruntime", "tensorrt", "faiss", "cv2", "numpy", "pydantic", "rich", "PIL")


def tk(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    command = [sys.executable, "-m", "tk.cli", *map(str, arguments)]
    # The narrow default of a pipe would break help lines in the middle of words.
    environment = {**os.environ, "COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def test_help__imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['tk', '--help']\n"
        "from tk.cli import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("heavy: []")
    assert all(name in done.stdout for name in COMMANDS)


def test_help__alone_teaches() -> None:
    done = tk()
    assert "tk demo" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *("data synth", "gallery build", "gallery evaluate", "gallery search", "bench annotator"),
        *(f"train {task}" for task in ("detector", "segmenter", "embedder")),
    ],
)
def test_help__every_command_explains_itself(command: str) -> None:
    done = tk(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5
    assert "Traceback" not in done.stdout + done.stderr


def test_version() -> None:
    assert tk("--version").stdout.startswith("tk 0.")


def test_doctor__names_python_back_end_and_packages() -> None:
    done = tk("doctor")
    assert done.returncode == 0
    for word in ("Python", "cores", "onnxruntime-cpu", "faiss", "torch"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense",), 2, ("nonsense",)),
        (("annotate",), 2, ("Missing",)),
        (("annotate", "a", "b", "--gallery", "g", "--search", "best"), 2, ("best", "centroid")),
        (("annotate", "a", "b", "--gallery", "g", "--nms-iou", "7"), 2, ("7",)),
        (("annotate", "a", "b", "--gallery", "g"), 2, ("no detector given", "--bundles")),
        (("verify", "nowhere"), 2, ("nowhere is not a bundle", "fix:")),
        (("export", "nowhere", "x", "--images", "in"), 2, ("nowhere", "does not exist")),
        (("report", "nowhere"), 2, ("nowhere",)),
        (("gallery", "build", "nowhere", "x", "--embedder", "e"), 2, ("e is not a bundle",)),
        (("data", "synth", "x", "--size", "17"), 2, ("17",)),
        (("data", "synth", "x", "--kind", "cats"), 2, ("cats", "tools")),
        (("train", "detector"), 2, ("--data", "--out")),
        (("train", "detector", "--data", "nowhere", "--out", "o"), 2, ("nowhere",)),
        (("train", "embedder", "--data_root", "nowhere", "--out_dir", "o"), 2, ("nowhere",)),
    ],
)
def test_mistakes__message_and_exit_code(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = tk(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug__shows_the_traceback() -> None:
    assert "Traceback" in tk("--debug", "verify", "nowhere").stderr


def test_spelling__underscores_and_dashes() -> None:
    for spelling in ("--box_threshold", "--box-threshold"):
        done = tk("annotate", "a", "b", "--gallery", "g", spelling, "7")
        assert "7" in done.stderr and "No such option" not in done.stderr


def test_full_disk__message_and_exit_code(tmp_path: Path) -> None:
    # A folder that cannot be written stands for every OSError: no traceback, exit code 3.
    blocked = Path("/proc/none/out")
    done = tk("data", "synth", blocked, "--images", 1, "--size", 256)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
