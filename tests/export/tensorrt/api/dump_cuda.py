"""Write the API of `cuda.bindings.runtime` as JSON: function signatures and enums.

Run by hand in an environment with cuda-python: python dump_cuda.py OUT.json (no GPU is needed).
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

ENUMS = (*("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus"),)


def main(out: Path) -> None:
    """Dump what the installed version has."""
    runtime = importlib.import_module("cuda.bindings.runtime")

    functions = {}
    constants = []
    for name in sorted(vars(runtime)):
        value = getattr(runtime, name)
        if name in ENUMS or not name.startswith("cuda") or isinstance(value, type):
            continue
        if callable(value):
            functions[name] = (value.__doc__ or "").strip().partition("\n")[0]
        elif isinstance(value, int):
            constants.append(name)
    enums = {
        name: {key: int(value) for key, value in kind.__members__.items()}
        for name in ENUMS
        for kind in [getattr(runtime, name)]
    }
    rows = [f'  "{name}": {json.dumps(text)}' for name, text in functions.items()]
    tables = [f'  "{name}": {json.dumps(members)}' for name, members in enums.items()]
    out.write_text(
        f'{{\n "version": "{metadata.version("cuda-bindings")}",\n "functions": {{\n'
        + ",\n".join(rows)
        + '\n },\n "enums": {\n'
        + ",\n".join(tables)
        + f'\n }},\n "constants": {json.dumps(constants)}\n}}\n'
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
