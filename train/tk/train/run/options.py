"""Command-line options made from a configuration model; TOML, JSON and YAML files read into it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from tk.runtime.errors import TkError
from tk.runtime.files import read_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = TypeVar("Config", bound=BaseModel)


def make_command(
    config_class: type[Config], run: Callable[[Config], Any], help: str
) -> Callable[..., None]:
    """Build a typer command whose options are the fields of `config_class`, and `--config FILE`.

    Values come from the model's defaults, then from the file, then from the command line.

    Args:
        config_class: pydantic model; descriptions become the help, defaults the shown defaults.
        run: called with the validated configuration.
        help: text of the command.
    """

    def command(**given: Any) -> None:
        file = given.pop("config", None)
        values = read_config_file(file, config_class) if file else {}
        # An option that was not given is None, an empty list if it may be repeated.
        values.update({name: value for name, value in given.items() if value not in (None, [])})
        run(validate(config_class, values))

    parameters = [
        _parameter("config", Path, "TOML, JSON or YAML file with values of these options")
    ]
    spellings = _aliases(config_class)
    for name, field in config_class.model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hidden"):
            continue  # set by the code alone
        others = [other for other, target in spellings.items() if target == name]
        parameters.append(_parameter(name, _plain_type(field.annotation), _help(field), others))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = help
    return command


def command_class(config_class: type[BaseModel]) -> type[TyperCommand]:
    """A command that lists its options under the titles of `config_class.sections`."""
    titles: dict[str, tuple[str, ...]] = getattr(config_class, "sections", {})

    class Sectioned(TyperCommand):
        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Write the options, section by section; what is in none comes last."""
            rows = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx)}
            rest = tuple(name for name in rows if all(name not in t for t in titles.values()))
            for title, names in {**titles, "Other options": rest}.items():
                if found := [rows[name] for name in names if rows.get(name)]:
                    with formatter.section(title):
                        formatter.write_dl(found)

    return Sectioned


def validate(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Build the configuration.

    Raises:
        TkError: names every missing, unknown or wrong option.
    """
    try:
        return config_class(**values)
    except ValidationError as error:
        problems = error.errors()
    missing = [_option(str(item["loc"][0])) for item in problems if item["type"] == "missing"]
    if missing:
        raise TkError("missing option " + ", ".join(missing), fix="see --help") from None
    lines = []
    for item in problems:
        name = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            lines.append(f"{name}: there is no such option")
        elif not name:  # about several options together
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{_option(name)}: {item['msg']}, found {item['input']!r}")
    raise TkError("; ".join(lines) or "wrong options", fix="see --help")


def read_config_file(path: Path, config_class: type[BaseModel]) -> dict[str, Any]:
    """Read a TOML, JSON or YAML file of options; relative paths in it start at the file's folder.

    Keys of `Options.not_used` are named on standard error, with the reason.

    Raises:
        TkError: missing file, bad syntax, another kind of file, unknown keys.
    """
    values = {".toml": _read_toml, ".yaml": _read_yaml, ".yml": _read_yaml}.get(
        path.suffix, read_json
    )(path)
    if not isinstance(values, dict):
        raise TkError(f"{path} must hold a table of options", found=type(values).__name__)
    aliases, fields = _aliases(config_class), config_class.model_fields
    not_used: dict[str, str] = getattr(config_class, "not_used", {})
    found, unknown = {}, []
    for shown, key, value in _flat(values, getattr(config_class, "file_sections", {})):
        name = aliases.get(key, key)
        if name in fields:
            found[name] = _from_folder(value, _plain_type(fields[name].annotation), path.parent)
        elif name in not_used:
            print(f"{path.name}: {shown} is not used: {not_used[name]}", file=sys.stderr)
        else:
            unknown.append(shown)
    if unknown:
        raise TkError(
            f"{path} has keys that are no options: {', '.join(sorted(unknown))}",
            expected=", ".join(fields),
        )
    return found


def _flat(values: dict[str, Any], sections: dict[str, str]) -> list[tuple[str, str, Any]]:
    """Keys as the file shows them, as options, and values; the last of equal options counts.

    Options outside of the sections come last, so that they win.
    """
    inner, outer = [], []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in sections and isinstance(value, dict):
            for under, found in value.items():
                option = sections[name] + str(under).replace("-", "_")
                inner.append((f"{key}.{under}", option, found))
        else:
            outer.append((str(key), name, value))
    return inner + outer


def _from_folder(value: Any, kind: Any, folder: Path) -> Any:
    """Relative paths start at the folder of the file that names them."""
    if isinstance(value, str):
        return {Path: folder / value, list[Path]: [folder / value]}.get(kind, value)
    if kind == list[Path] and isinstance(value, list):
        return [_from_folder(each, Path, folder) for each in value]
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TkError(f"{path} does not exist") from None
    except tomllib.TOMLDecodeError as error:
        raise TkError(f"{path} is not valid TOML: {error}") from None


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TkError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TkError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _aliases(config_class: type[BaseModel]) -> dict[str, str]:
    """Other spelling -> field (see `TrainConfig.aliases`)."""
    aliases: dict[str, str] = getattr(config_class, "aliases", {})
    return aliases


def _parameter(name: str, kind: Any, help: str, others: Sequence[str] = ()) -> inspect.Parameter:
    declarations = [_option(name), *map(_option, others)]
    if kind is bool:
        declarations = [f"{_option(name)}/--no-{_option(name)[2:]}"]
    option = typer.Option(*declarations, help=help, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[kind], option],  # noqa: UP045 - kind is a value
    )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required():
        return f"{text} (required)"
    value = field.get_default(call_default_factory=True)
    if value in (None, "", (), []):
        return text
    shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    return f"{text} (default: {shown})"


def _plain_type(annotation: Any) -> Any:
    """The type typer needs: without None, sequences as lists, choices as they are."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inner = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _plain_type(inner[0]) if len(inner) == 1 else str
    if origin is tuple and Ellipsis not in get_args(annotation):
        return tuple[tuple(map(_plain_type, get_args(annotation)))]  # type: ignore[misc]
    if origin in (list, tuple):
        return list[_plain_type(get_args(annotation)[0])]  # type: ignore[misc]
    if origin is Literal or annotation in (int, float, str, bool, Path):
        return annotation
    return str
