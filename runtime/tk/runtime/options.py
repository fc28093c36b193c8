"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads per engine, 0 for all cores.")]


def _device(text: str) -> str:
    from tk.runtime.devices import parse_device
    from tk.runtime.errors import TkError

    try:
        parse_device(text)
    except TkError as error:
        raise typer.BadParameter(str(error)) from None
    return text


DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=_device,
        help="auto, cpu, cuda, or cuda:N for the GPU with that number.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="auto takes the fastest that passed the gate and runs here; fp32, fp16, bf16, int8.",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="auto, tensorrt, onnxruntime or openvino; onnxruntime-cuda and -cpu tell them apart.",
    ),
]


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
