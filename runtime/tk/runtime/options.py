"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads per engine, 0 for all cores.")]


class Device(str, Enum):
    """Where sessions run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Search(str, Enum):
    """What an object is compared with."""

    centroid = "centroid"
    stack = "stack"
    sub = "sub"


SearchOption = Annotated[
    Search,
    typer.Option(help="Compare with class means, every reference, or sub-prototypes of classes."),
]


def print_json(value: Any) -> None:
    """Print indented JSON; NaN becomes null."""
    import orjson

    print(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
