"""Features of a frozen backbone, computed once and kept in a memory map."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import nn

from tk.runtime.errors import TkError
from tk.runtime.preprocess import Image
from tk.runtime.progress import progress
from tk.train.embedder.feature_file import Block, FeatureFile, bytes_needed, most_views

__all__ = ["alone", "bytes_needed", "cache_features", "most_views", "weights_digest"]


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 of names, types, shapes and values in the state dict of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())  # bytes, so that bfloat16 works too
    return digest.hexdigest()


def alone() -> None:
    """Wait for nobody: the barrier of a single process."""


def cache_features(
    folder: Path,
    name: str,
    *,
    rows: int,
    size: int,
    key: Mapping[str, object],
    canvas: Callable[[int], Image],
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    batch_size: int,
    views: int = 1,
    threads: int = 1,
    part: tuple[int, int] = (0, 1),
    barrier: Callable[[], None] = alone,
) -> NDArray[np.float32]:
    """Compute the features of all canvases, or take those that were computed before.

    Rows go through `embed` in fixed slices of `batch_size`, so bytes depend neither on
    interruptions nor on the number of processes.

    Args:
        folder: gets NAME.npy and NAME.json; shared by all processes.
        name: of the two files.
        rows: number of canvases.
        size: length of a feature.
        key: everything that features depend on, as JSON values; features made from another key
            are made anew.
        canvas: row -> (S, S, 3) uint8 RGB, always the same for a row.
        embed: (B, S, S, 3) uint8 RGB -> (B, size) float32; called in this thread.
        batch_size: canvases per call of `embed`.
        views: rows per crop, to say how many views would fit when the disk is too small.
        threads: that call `canvas`, while `embed` runs. An `Augment` keeps state while it works:
            for more than one thread give each its own.
        part: (rank, number of processes); each process computes its share.
        barrier: waits for all processes.

    Returns:
        (rows, size) float32, a read-only memory map.

    Raises:
        EnvironmentLacks: there is no room on the disk.
        TkError: a feature is not finite, or the processes do not share the folder.
    """
    rank, world = part
    if world > 1 and barrier is alone:
        raise ValueError("several processes need a barrier")
    if not rows:
        return np.zeros((0, size), np.float32)
    store = FeatureFile(folder, name, rows, size, batch_size, _plain(key))
    if rank == 0:
        store.prepare(views)
    barrier()
    todo = store.todo()
    barrier()  # the first process writes to its sidecar from here on
    if todo:
        share = [todo[i] for i in np.array_split(np.arange(len(todo)), world)[rank]]
        _compute(store, share, rank, canvas, embed, threads)
        barrier()
        if rank == 0:
            store.finish()
        barrier()
    elif rank == 0:
        print(f"features {name}: {rows} rows of {store.data.name} are reused", file=sys.stderr)
    features: NDArray[np.float32] = np.load(store.data, mmap_mode="r")
    return features


def _compute(
    store: FeatureFile,
    blocks: Sequence[Block],
    rank: int,
    canvas: Callable[[int], Image],
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    threads: int,
) -> None:
    total = sum(stop - start for start, stop in blocks)
    # One bar is enough: the shares are equal.
    shown = nullcontext() if rank else progress(f"features {store.name}", total)
    ahead = closing(_ahead(blocks, canvas, threads))
    with store.writer(rank) as writer, ahead as made, shown as bar:
        for block, canvases in made:
            features = embed(canvases)
            if features.shape != (len(canvases), store.size):
                raise ValueError(f"features of shape {features.shape}, not (B, {store.size})")
            if not np.isfinite(features).all():
                raise TkError(
                    f"the backbone gives features that are not finite (rows {block[0]} to "
                    f"{block[1] - 1} of {store.name})",
                    fix="other --weights, or --precision float32",
                )
            writer.write(block, features)
            if bar is not None:
                bar.advance(block[1] - block[0])


def _ahead(
    blocks: Sequence[Block], canvas: Callable[[int], Image], threads: int
) -> Generator[tuple[Block, NDArray[np.uint8]], None, None]:
    """Make the canvases of each block while the one before is in use."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="canvas")

    def begin(block: Block) -> list[Future[Image]]:
        return [pool.submit(canvas, row) for row in range(*block)]

    try:
        coming = begin(blocks[0]) if blocks else []
        for i, block in enumerate(blocks):
            current, coming = coming, []
            if i + 1 < len(blocks):
                coming = begin(blocks[i + 1])
            yield block, np.stack([future.result() for future in current])
    finally:
        pool.shutdown(cancel_futures=True)


def _plain(key: Mapping[str, object]) -> Any:
    """Bring a key to what JSON gives back, to compare like with like."""
    return orjson.loads(orjson.dumps(dict(key), option=orjson.OPT_SERIALIZE_NUMPY, default=str))
