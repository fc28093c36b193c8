"""docs/classifier.md tells the truth: its commands and options exist, its thresholds hold."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from tk.cli import COMMANDS
from tk.runtime.parity.limits import THRESHOLDS
from tk.runtime.parity.rows import TIE

TEXT = (Path(__file__).parents[1] / "docs" / "classifier.md").read_text("utf-8")
SHOWN = [
    shlex.split(line.split("#")[0])
    for block in re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("tk ")
]


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_doc__commands_and_options_exist(words: list[str]) -> None:
    module = importlib.import_module(COMMANDS[words[1]][0])
    command = typer.main.get_command(module.COMMANDS[words[1]])
    if words[1] == "bench":
        command = command.commands[words[2]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_doc__thresholds() -> None:
    for metric in ("logit_difference", "probability_difference", "agreement"):
        line = next(line for line in TEXT.splitlines() if line.startswith(f"| `{metric}`"))
        stated = [float(cell) for cell in line.strip("| ").split("|")[2:]]
        assert stated == [THRESHOLDS[p][metric] for p in ("fp32", "fp16", "bf16", "int8")]
    assert f"more than {TIE:g} apart" in TEXT
