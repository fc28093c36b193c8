"""The `tk` command: a table of sub-commands, each imported only when it is used."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("tk.cli.demo", "The whole chain on generated scenes, offline, minutes on a laptop."),
    "doctor": ("tk.runtime.cli", "What this machine has and lacks: devices, back ends, versions."),
    "data": (
        "tk.train.cli",
        "Prepare data: scenes, steel defects, digits, masks by SAM-2.",
    ),
    "train": (
        "tk.train.cli",
        "Train a detector, segmenter or embedder; pre-train a backbone (ssl).",
    ),
    "export": ("tk.export.cli", "Turn a checkpoint into a bundle, proved against PyTorch."),
    "plan": (
        "tk.export.tensorrt.cli",
        "TensorRT plans of a bundle, built and proved where they run.",
    ),
    "verify": ("tk.runtime.cli", "Check a bundle: hashes and parity again, without PyTorch."),
    "gallery": ("tk.runtime.cli", "Class prototypes: build, evaluate, search."),
    "annotate": ("tk.runtime.cli", "Find, cut out and name the objects in a folder of photos."),
    "classify": (
        "tk.runtime.cli",
        "Say what each picture in a folder shows; score by folder names.",
    ),
    "report": ("tk.runtime.cli", "One HTML page to look through the results."),
    "bench": ("tk.benchmarks.cli", "Latency, accuracy and equality, side by side."),
}
"""Command -> (module whose `COMMANDS` dict holds it, its line in `tk --help`)."""

DASHES = {"token_normalize_func": lambda token: token.replace("_", "-")}
"""`--data_root` and `--data-root` are the same option, in every command."""


class LazyGroup(TyperGroup):
    """Help lines come from COMMANDS, so `tk --help` imports no sub-command."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in table order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the module behind one sub-command."""
        if cmd_name not in COMMANDS:
            return None
        from tk.runtime.errors import EnvironmentLacks

        module_name = COMMANDS[cmd_name][0]
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            extra = module_name.split(".")[1]
            raise EnvironmentLacks(
                f"tk {cmd_name} needs the package {error.name!r}",
                fix=f"pip install 'tk-vision[{extra if extra in ('train', 'export') else 'cpu'}]'",
            ) from None
        command = typer.main.get_command(module.COMMANDS[cmd_name])
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def group(help: str) -> typer.Typer:
    """Make a command that has sub-commands (`tk train …`)."""
    made = typer.Typer(
        rich_markup_mode=None,
        add_completion=False,
        no_args_is_help=True,
        context_settings=DASHES,
        help=help,
    )

    @made.callback(help=help)
    def _named() -> None:
        """Keep the sub-command's name even when there is only one."""

    return made


def single(function: Callable[..., None]) -> typer.Typer:
    """Make a command of one function (`tk annotate`)."""
    made = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=DASHES)
    made.command()(function)
    return made


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, without importing rich
    context_settings=DASHES,
)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"tk {version('tk-vision')}")
        raise typer.Exit


@app.callback()
def main(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Show the version.", is_eager=True, callback=_show_version
    ),
) -> None:
    """tk: vision models from PyTorch to engines that give the same answers.

    Start with `tk demo --out demo`. Every command explains itself: `tk annotate --help`.
    """
    if debug:
        os.environ["TK_DEBUG"] = "1"


def run() -> None:
    """Console entry point: exit codes 0 done, 1 a check said no, 2 input, 3 environment, 130 ^C."""
    from tk.runtime.errors import TkError

    try:
        code = app(standalone_mode=False) or 0
        if code == 130:
            print("interrupted", file=sys.stderr)
        sys.exit(code)
    except typer._click.exceptions.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TkError as error:
        text = str(error) if error.exit_code == 130 else f"error: {error}"
        _report(error, text, error.exit_code)
    except OSError as error:
        # A full disk, a folder without permission: the user's to mend, not a bug of ours.
        where = f": {error.filename}" if error.filename else ""
        room = "\n  fix:      make room on that disk" if error.errno == errno.ENOSPC else ""
        _report(error, f"error: {error.strerror or error}{where}{room}", 3)


def _report(error: BaseException, text: str, code: int) -> None:
    if os.environ.get("TK_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(text, file=sys.stderr)
    sys.exit(code)
