"""docs/tensorrt.md tells the truth: its tables, commands and messages are those of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tk.export.tensorrt.known_bad import TABLE
from tk.runtime.backends.onnxrt_cuda.options import MEMORY_SHARE
from tk.runtime.backends.tensorrt.session import LANES
from tk.runtime.machine import JETPACKS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/tensorrt.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a line that starts with `heading`, without its head."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("tk ")})


def test_doc__known_bad_pairs_are_those_of_the_table() -> None:
    expected = [
        [
            row.first if row.first == row.last else f"{row.first} – {row.last}",
            ", ".join(row.traits) or "any",
            "refuses" if row.refuse else "warns",
            row.reason,
            row.thread,
        ]
        for row in TABLE
    ]
    assert table("### Pairs that are known to be wrong") == expected


def test_doc__jetpacks_are_those_of_the_doctor() -> None:
    found = [(row[0], row[1]) for row in table("There\nis no PyTorch") if row]
    assert found == [(name, tensorrt) for _, name, tensorrt in reversed(JETPACKS[:3])]


def test_doc__numbers() -> None:
    assert f"to {MEMORY_SHARE:.0%}".replace("%", " %") in PAGE
    assert LANES == 8 and "Eight shapes keep their graph" in PAGE


@pytest.mark.parametrize("line", commands())
def test_doc__commands_and_options_exist(line: str) -> None:
    words = shlex.split(line)
    depth = 3 if words[1] == "gallery" else 2
    command = [sys.executable, "-m", "tk.cli", *words[1:depth], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if words[1] == "export" and "--to " not in done.stdout:
        pytest.xfail("tk export does not build plans yet")
    for word in words:
        if word.startswith("--"):
            assert word in done.stdout, f"{line}: no option {word}"


@pytest.mark.parametrize("message", [row[0] for row in table("## When something is wrong")])
def test_doc__messages_exist(message: str) -> None:
    """Each quoted message is in the code, its variable pieces aside."""
    quoted = message.split("`")[1]
    pieces = [p.strip() for p in re.split(r"…|\bX\b|\bY\b|\d+\.\d+|sm90|CUDA 13", quoted)]
    folders = [ROOT / "runtime/tk/runtime", ROOT / "export/tk/export"]
    code = " ".join(file.read_text("utf-8") for folder in folders for file in folder.rglob("*.py"))
    code = re.sub(r"\{[^}]*\}", " ", code)
    for piece in pieces:
        for words in re.findall(r"[A-Za-z' ]{6,}", piece):
            assert words.strip() in code, words
