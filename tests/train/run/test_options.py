from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field
from tests.command_lines import options_of

from tk.runtime.errors import TkError
from tk.train.run.config import TrainConfig


class Options(TrainConfig):
    crop: Literal["bbox", "mask"] = Field("bbox", description="kind of crop")
    flip: bool = Field(True, description="mirror samples")
    weights: Path | None = Field(None, description="start weights")
    single_class: tuple[str, ...] = Field((), description="names")


def call(*arguments: str) -> Options:
    return options_of(Options, *arguments)


BASE = ("--data", "d", "--out", "o")


def test_make_command__defaults_and_values() -> None:
    assert call(*BASE) == Options(data=Path("d"), out=Path("o"))
    options = call(
        *BASE, "--no-flip", "--batch-size", "7", "--crop", "mask", "--weights", "w",
        "--single-class", "a", "--single-class", "b", "--overwrite", "--lr", "3e-4",
    )  # fmt: skip
    expected: dict[str, Any] = dict(
        flip=False, batch_size=7, crop="mask", weights=Path("w"), lr=3e-4
    )
    assert options == Options(
        data=Path("d"), out=Path("o"), single_class=("a", "b"), overwrite=True, **expected
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--data", "d"), TkError, "missing option --out"),
        (
            (*BASE, "--batch-size", "0"),
            TkError,
            "--batch-size: .*greater than or equal to 1, found 0",
        ),
        ((*BASE, "--crop", "circle"), ValueError, "(?s)circle.*bbox"),
        ((*BASE, "--steps", "many"), ValueError, "many"),
        ((*BASE, "--unknown", "1"), ValueError, "unknown"),
    ],
)
def test_make_command__errors_name_the_option(
    arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(*arguments)


def test_make_command__help_shows_defaults() -> None:
    with pytest.raises(ValueError) as caught:
        call("--help")
    text = str(caught.value)
    for part in (
        "Train.",
        "--batch-size",
        "(default: 32)",
        "--no-flip",
        "(default: yes)",
        "(required)",
    ):
        assert part in text, part
    assert "bbox|mask" in text


TOML = 'data = "scenes"\nbatch-size = 5\nflip = false\nsteps = 9\n'


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_make_command__file_gives_defaults(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"c.{kind}"
    values = {"data": "scenes", "batch_size": 5, "flip": False, "steps": 9}
    file.write_text(TOML if kind == "toml" else json.dumps(values))
    options = call("--config", str(file), "--out", "o", "--steps", "3")
    assert options == Options(
        data=tmp_path / "scenes", out=Path("o"), batch_size=5, flip=False, steps=3
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "lrr = 1", "no options: lrr"),
        ("c.toml", "lr = ", "not valid TOML"),
        ("c.json", "{", "not valid JSON"),
        ("c.json", "[1]", "table of options"),
        ("missing.toml", None, "does not exist"),
    ],
)
def test_config_file__errors(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TkError, match=message):
        call(*BASE, "--config", str(tmp_path / name))


class Aliased(TrainConfig):
    aliases: ClassVar[dict[str, str]] = {"data_root": "data", "batch": "batch_size"}


def test_make_command__other_spellings(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('data_root = "crops"\nbatch = 5\n')
    lines = (["--data-root", "d", "--batch", "7"], ["--config", str(file)])
    seen = [options_of(Aliased, *words, "--out", "o") for words in lines]
    assert [(config.data, config.batch_size) for config in seen] == [
        (Path("d"), 7),
        (tmp_path / "crops", 5),
    ]
