"""The README tells the truth: its commands exist, with the options that it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tk.cli import COMMANDS
from tk.cli.demo import FULL, steps

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
GROUPS = ("data", "train", "gallery", "bench")


def _shown_commands() -> list[tuple[str, ...]]:
    """Every `tk …` in a code block or in backticks of a table, as words."""
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(tk [^`]+)`", README)
    shown = [re.sub(r"^\.venv/bin/", "", line).split("  #")[0] for line in [*lines, *inline]]
    return sorted({tuple(shlex.split(line)) for line in shown if line.startswith("tk ")})


def _help(words: tuple[str, ...]) -> str:
    depth = 2 if words[1] in GROUPS else 1
    command = [sys.executable, "-m", "tk.cli", *words[1 : 1 + depth], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.mark.parametrize("words", _shown_commands(), ids=" ".join)
def test_readme__commands_and_options_exist(words: tuple[str, ...]) -> None:
    if len(words) == 1:
        return
    text = _help(words)
    for word in words:
        if word.startswith("--") and word != "--help":
            assert word in text, f"{' '.join(words)}: no option {word}"


def test_readme__names_every_command() -> None:
    missing = [name for name in COMMANDS if f"`tk {name}" not in README]
    assert not missing


@pytest.mark.parametrize("target", ["demo", "test"])
def test_readme__make_targets_exist(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)


def test_readme__pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_demo__every_step_is_a_public_command_with_known_options() -> None:
    helps: dict[tuple[str, ...], str] = {}
    for step in steps(Path("demo"), FULL):
        words = ("tk", *step.arguments)
        key = words[: 3 if words[1] in GROUPS else 2]
        text = helps.setdefault(key, _help(words))
        for word in step.arguments:
            if word.startswith("--"):
                assert word.replace("_", "-") in text, f"{step.line}: no option {word}"


def test_repository__has_no_large_files() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    large = [name for name in listed if (ROOT / name).stat().st_size > 3_000_000]
    assert listed and not large
