"""`--arch`: one command, the options of one architecture at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from tk.runtime.errors import TkError
from tk.train.run.arch import Arch, add_arch_command, named_arch


class Small(BaseModel):
    model_config = ConfigDict(extra="forbid")
    arch: Literal["small"] = "small"
    width: int = Field(8, description="width of a small one")


class Large(BaseModel):
    model_config = ConfigDict(extra="forbid")
    arch: Literal["large"] = "large"
    depth: int = Field(12, description="depth of a large one")


@pytest.fixture
def app() -> tuple[typer.Typer, list[Any]]:
    made = typer.Typer(rich_markup_mode=None)
    given: list[Any] = []

    @made.callback()
    def named() -> None:
        """Keep the name of the only command."""

    archs: dict[str, Arch] = {
        "small": (Small, given.append, "Small."),
        "large": (Large, given.append, "Large."),
    }
    add_arch_command(made, "train", archs)
    return made, given


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], Small()),
        (["--width", "3"], Small(width=3)),
        (["--arch", "large", "--depth", "3"], Large(depth=3)),
        (["--depth", "3", "--arch=large"], Large(depth=3)),
        (["--arch", "small", "--arch", "large"], Large()),
    ],
)
def test_arch__chooses_whose_options_are_read(
    app: tuple[typer.Typer, list[Any]], arguments: list[str], found: BaseModel
) -> None:
    run = CliRunner().invoke(app[0], ["train", *arguments])
    assert run.exit_code == 0, (run.output, run.exception)
    assert app[1] == [found]


def test_arch__help_shows_one_architecture(app: tuple[typer.Typer, list[Any]]) -> None:
    small = CliRunner().invoke(app[0], ["train", "--help"]).output
    large = CliRunner().invoke(app[0], ["train", "--arch", "large", "--help"]).output
    assert "--width" in small and "--depth" not in small
    assert "--depth" in large and "--width" not in large


def test_arch__options_of_the_other_are_refused(app: tuple[typer.Typer, list[Any]]) -> None:
    run = CliRunner().invoke(app[0], ["train", "--depth", "3"])
    assert run.exit_code == 2 and "--depth" in run.output


def test_arch__unknown_name(app: tuple[typer.Typer, list[Any]]) -> None:
    run = CliRunner().invoke(app[0], ["train", "--arch", "huge"])
    assert isinstance(run.exception, TkError) and "small, large" in str(run.exception)


def test_arch__file_of_another(app: tuple[typer.Typer, list[Any]], tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('arch = "large"\n')
    run = CliRunner().invoke(app[0], ["train", "--config", str(file)])
    assert isinstance(run.exception, TkError) and "arch" in str(run.exception)


def test_named_arch__nothing_after_it() -> None:
    assert named_arch(["--arch"]) == "" and named_arch([]) == ""
