"""docs/annotator.md tells the truth: its options exist and have the defaults that it states."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tk.export.cli import COMMANDS as EXPORT
from tk.runtime.cli import COMMANDS as RUNTIME

TEXT = (Path(__file__).parents[2] / "docs" / "annotator.md").read_text("utf-8")
TABLE = TEXT.split("## Constants of the original script")[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TABLE.replace("| |", "|  |").splitlines()
    if line.startswith("| ") and not line.startswith("| constant")
]
SEED = (
    "IMAGES_DIR GALLERY_DIR BASE_DIR NUM_IMAGES TIMM_DINOV3_ID GROUNDING_DINO_MODEL "
    "GROUNDING_PROMPT BOX_THR TEXT_THR SAM2_CFG SAM2_CKPT SAVE_VIS JSON_SAVE_TQDM JSON_SAVE_ASYNC "
    "OUTPUT_FORMAT JSON_CHECKPOINT_EVERY DEBUG_EXPORT FORCE_SINGLE_GPU SINGLE_GPU_INDEX "
    "UNIQUE_REASSIGN_MIN_SCORE UNIQUE_REASSIGN_DUPLICATES RESUME_EXP_DIR"
).split()


@cache
def _help(*command: str) -> str:
    words = [sys.executable, "-m", "tk.cli", *command, "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _parameter(command: str, name: str) -> Any:
    made: Any = typer.main.get_command({**EXPORT, **RUNTIME}[command])
    found = [
        p
        for p in made.params
        if name in (p.opts if p.param_type_name == "option" else [str(p.metavar or p.name).upper()])
    ]
    assert found, f"tk {command} has no {name}"
    return found[0]


def test_table__has_every_constant_of_the_seed() -> None:
    assert all(len(row) == 5 for row in ROWS), [row for row in ROWS if len(row) != 5]
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert named >= set(SEED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_table__option_exists_and_has_the_stated_default(row: list[str]) -> None:
    _, option, _, ours, why = row
    match = re.fullmatch(r"`tk (annotate|export) (\S+)`", option)
    if match is None:
        assert option in ("in the graph", "in the checkpoint", "not needed", "later") and why
        return
    command, name = match.groups()
    assert name in _help(command)
    parameter = _parameter(command, name)
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    stated = re.fullmatch(r"`(.+)`", ours)
    if stated:
        assert stated.group(1) == str(default)
    else:
        assert ours == ("required" if parameter.required else "none")
        assert parameter.required or default in (None, "")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_table__another_default_has_a_reason(row: list[str]) -> None:
    _, _, seed, ours, why = row
    assert why or seed in ours or ours == "required"


COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("tk ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands__exist_with_their_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command = words[: 2 if words[0] in ("train", "data") else 1]
    if "--arch" in words:
        command += words[words.index("--arch") :][:2]
    text = _help(*command)
    assert all(word in text for word in words if word.startswith("--"))
