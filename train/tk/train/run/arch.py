"""Commands with several architectures: `--arch NAME` chooses whose options are read and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from tk.runtime.errors import TkError
from tk.train.run.options import command_class, make_command

Arch = tuple[Any, Callable[[Any], Any], str]
"""Configuration class (its field `arch` names itself), what runs it, text of its help."""


def add_arch_command(group: typer.Typer, name: str, archs: Mapping[str, Arch]) -> None:
    """Add one command with the options of the architecture that `--arch` names.

    Args:
        group: gets the command.
        name: of the command.
        archs: name -> architecture; the first is the one without `--arch`.
    """
    first = next(iter(archs))

    class ArchCommand(command_class(archs[first][0])):  # type: ignore[misc]
        """The first architecture's command, which hands over to another's."""

        def make_context(self, info_name: Any, args: list[str], *rest: Any, **extra: Any) -> Any:
            arch = named_arch(args) or first
            if arch not in archs:
                raise TkError(
                    f"tk train {name} knows no architecture {arch!r}", expected=", ".join(archs)
                )
            if arch == first:
                return super().make_context(info_name, args, *rest, **extra)
            return _command(name, archs[arch]).make_context(info_name, args, *rest, **extra)

    config, run, text = archs[first]
    group.command(name, cls=ArchCommand, help=text)(make_command(config, run, text))


def named_arch(arguments: Sequence[str]) -> str:
    """Value of the last `--arch` on a command line, "" when there is none."""
    found = ""
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--arch":
            found = value if equals else "".join(arguments[index + 1 : index + 2])
    return found


def _command(name: str, arch: Arch) -> TyperCommand:
    from tk.cli import DASHES

    config, run, text = arch
    app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=DASHES)
    app.command(name, cls=command_class(config), help=text)(make_command(config, run, text))
    built = typer.main.get_command(app)
    assert isinstance(built, TyperCommand)
    return built
