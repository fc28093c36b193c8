"""docs/defects.md tells the truth: its commands and options exist, with the defaults it states."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from tk.train.cli import data, train

ROOT = Path(__file__).parents[4]
TEXT = (ROOT / "docs" / "defects.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
    # comments go, and lines that are indented go on with the command above them
    for line in re.sub(r"\n +", " ", re.sub(r" *#.*", "", block)).splitlines()
    if line.startswith(("tk data ", "tk train "))
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_doc__commands_and_options_exist(words: list[str]) -> None:
    group = typer.main.get_command(data if words[1] == "data" else train)
    command = group.commands[words[2]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.replace("_", "-") for word in words if word.startswith("--")} <= known


def test_doc__defaults_and_pictures() -> None:
    group = typer.main.get_command(data)
    defaults = {
        option: parameter.default
        for name in ("severstal", "patches")
        for parameter in group.commands[name].params  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    stated = re.findall(r"`(--(?:min|context|target|max)[a-z-]*) ([\d.]+)`", TEXT)
    assert len(stated) == 5
    for option, value in stated:
        assert float(value) == defaults[option], option
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert len(pictures) == 2 and all((ROOT / "docs" / name).is_file() for name in pictures)
