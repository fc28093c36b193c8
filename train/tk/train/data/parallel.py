"""One job for many items, in this process or in several, with the results in order."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

from tk.runtime.errors import TkError

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHUNK = 16
"""Items that a worker takes at once, at most."""


@contextmanager
def in_order(
    job: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Iterator[Result]]:
    """Yield the results of `job` for every item, in the order of the items.

    OpenCV runs on one thread in every process, so that its results do not depend on `workers`.

    Args:
        job: with more than one worker it must be picklable (a function of a module, or a partial of
            one); it is sent along with every few items, so it should not hold much.
        items: picklable.
        workers: processes, 1 or more; with 1 the work is done here.
    """
    if workers == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield map(job, items)
        finally:
            cv2.setNumThreads(threads)
        return
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(items))),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )
    chunk = max(1, min(_CHUNK, len(items) // (4 * workers)))
    try:
        yield pool.map(job, items, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def check_counts(*, images: int, seed: int, workers: int) -> None:
    """Refuse numbers that no data set is drawn from.

    Raises:
        TkError: `images` or `workers` is below 1, or `seed` below 0.
    """
    for name, value, least in (("images", images, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < least:
            raise TkError(
                f"the number given for --{name} is too small",
                expected=f"{least} or greater",
                found=str(value),
            )


def _start_worker(parent: int) -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: after a kill -9 nobody else would."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
