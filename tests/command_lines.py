"""What a command line says, without running what it is for."""

from __future__ import annotations

from typing import TypeVar

import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from tk.cli import DASHES
from tk.train.run.options import make_command

Config = TypeVar("Config", bound=BaseModel)


def options_of(config_class: type[Config], *arguments: str) -> Config:
    """The configuration that a command gets; errors are raised, ValueError those of typer."""
    seen: list[Config] = []
    app = typer.Typer(context_settings=DASHES)
    app.command()(make_command(config_class, seen.append, "Train."))
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    if not seen:
        raise ValueError(result.output)
    return seen[0]
