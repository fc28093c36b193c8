"""Does an ONNX file name other files? OpenVINO would read any that it names, wherever it lies.

The few bytes that matter are read here, for the runtime does without the package onnx.
"""

from __future__ import annotations

from collections.abc import Iterator

from tk.runtime.errors import TkError

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "place", 14: "location"},
}
"""Message of onnx.proto -> number of a field that can lead to a tensor -> what it holds."""

_EXTERNAL = ("place", "location")


def names_files(data: bytes) -> bool:
    """Whether some tensor of an ONNX file says that it lies elsewhere.

    Raises:
        TkError: the bytes are no ONNX file.
    """
    todo = [("model", 0, len(data))]
    while todo:
        message, start, end = todo.pop()
        for field, first, last in _fields(data, start, end):
            kind = _MESSAGES[message].get(field, "")
            if kind == "place" or (kind == "location" and data[first:last] != b"\0"):
                return True
            if kind and kind not in _EXTERNAL:
                todo.append((kind, first, last))
    return False


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the value of each field of a protobuf message."""
    while at < end:
        tag, at = _number(data, at, end)
        first = at
        if tag & 7 == 0:
            _, at = _number(data, at, end)
        elif tag & 7 == 2:
            size, first = _number(data, at, end)
            at = first + size
        else:
            at += {1: 8, 5: 4}.get(tag & 7, end)  # other kinds are not in use: past the end
        if at > end:
            raise TkError("the bytes are no ONNX file", fix="export the model again")
        yield tag >> 3, first, at


def _number(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits per byte, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise TkError("the bytes are no ONNX file", fix="export the model again")
