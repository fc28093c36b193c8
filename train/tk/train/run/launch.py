"""`--gpus N` and torchrun: one process per GPU (or several on the CPU), and one way out of them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.train.run.config import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)
PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one may have an hour of features to compute."""
GRACE = 20.0
"""Seconds that the other processes get to end by themselves after one has failed."""


def launch(train: Callable[[Config], Path], config: Config) -> Path:
    """Call `train(config)` in as many processes as `--gpus` or torchrun asks for.

    Args:
        train: a function of a module (it is found by name in new processes); each process calls
            it, and what it returns in process 0 is returned here.

    Raises:
        EnvironmentLacks: fewer GPUs than asked for.
        TkError, KeyboardInterrupt: what `train` raised in any of the processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return _under_torchrun(train, config)
    if not config.gpus:
        return train(config)
    on_cpu = config.device == "cpu"
    if not on_cpu and torch.cuda.device_count() < config.gpus:
        raise EnvironmentLacks(
            f"--gpus {config.gpus} needs as many GPUs",
            found=f"{torch.cuda.device_count()} CUDA devices",
            fix="--gpus 0, or --device cpu to run that many processes on the CPU",
        )
    return train(config) if config.gpus == 1 else _spawn(train, config)


def speaks() -> bool:
    """Say whether this process talks to the user, also outside of `launch`."""
    return os.environ.get("RANK", "0") == "0"


def _under_torchrun(train: Callable[[Config], Path], config: Config) -> Path:
    local, local_count = (int(os.environ.get(k, 0)) for k in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    cuda = config.device != "cpu" and torch.cuda.is_available()
    if config.device.startswith("cuda") and not cuda:
        raise EnvironmentLacks(f"--device {config.device} without CUDA", fix="--device cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if config.gpus not in (0, count):
        raise TkError(
            "torchrun says how many processes there are",
            expected=f"no --gpus, or --gpus {count}",
            found=f"--gpus {config.gpus}",
        )
    if cuda and torch.cuda.device_count() < max(local_count, local + 1):
        raise EnvironmentLacks(
            f"torchrun started {local_count} processes on this machine",
            found=f"{torch.cuda.device_count()} CUDA devices",
            fix="a smaller --nproc-per-node, or --device cpu",
        )
    dist.init_process_group(_backend(cuda), timeout=PATIENCE)
    try:
        return train(_of_process(config, local, max(local_count, 1), cuda))
    finally:
        dist.destroy_process_group()


def _backend(cuda: bool) -> str:
    # Flags and figures travel on the CPU: they must not wait for the GPU's queue.
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def _of_process(config: Config, local: int, count: int, cuda: bool) -> Config:
    """The configuration of one process on this machine: its device and its share of the cores."""
    if cuda:
        torch.cuda.set_device(local)
        return config.model_copy(update={"device": f"cuda:{local}"})
    threads = config.threads or max(1, torch.get_num_threads() // count)
    return config.model_copy(update={"device": "cpu", "threads": threads})


def _spawn(train: Callable[[Config], Path], config: Config) -> Path:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started, pipes = [], []
        for number in range(config.gpus):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_member, args=(train, config, number, Path(folder) / "meet", sender)
            )
            process.start()
            sender.close()
            started.append(process)
            pipes.append(receiver)
        with _forward_signals(started) as signals:
            _wait(started)
        outcomes: list[Any] = [_received(pipe) for pipe in pipes]
        if signals.seen:  # also when it came before the processes could say so
            outcomes.append(KeyboardInterrupt())
    return _outcome(outcomes, [process.exitcode for process in started])


def _member(
    train: Callable[[Config], Path], config: Config, number: int, meet: Path, sender: Connection
) -> None:
    """Body of one process; its outcome is a path or an exception, sent to the parent."""
    _die_with_parent()
    os.setsid()  # Ctrl-C of a terminal reaches the parent alone, which passes it on once
    cuda = config.device != "cpu"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside the loop; see StopRequest
    try:
        dist.init_process_group(
            _backend(cuda),
            init_method=f"file://{meet}",
            rank=number,
            world_size=config.gpus,
            timeout=PATIENCE,
        )
        sender.send(train(_of_process(config, number, config.gpus, cuda)))
    except KeyboardInterrupt:
        sender.send(KeyboardInterrupt())
        sys.exit(130)
    except (TkError, OSError) as error:
        sender.send(error)
        sys.exit(2)
    except Exception:  # a bug, or only the end of a process that this one was waiting for
        sender.send(traceback.format_exc())
        sys.exit(1)
    dist.destroy_process_group()


def _received(pipe: Connection) -> Any:
    """What a process has sent; None if it ended without a word."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


def _die_with_parent() -> None:
    """Let Linux kill this process when the parent is killed: nobody else would stop it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _forward_signals:
    """While active, Ctrl-C and SIGTERM go to the processes, which stop after a whole step."""

    def __init__(self, processes: list[Any]) -> None:
        self.processes = processes
        self.previous: dict[signal.Signals, Any] = {}
        self.seen = False

    def __enter__(self) -> _forward_signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: object) -> None:
        self.seen = True
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)


def _wait(processes: list[Any]) -> None:
    """Wait for all; after a failure the others get a while, then they are ended."""
    deadline = float("inf")
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(0.1)
            if process.exitcode not in (None, 0, 130):  # 130: stopping, which may take a while
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()


def _outcome(outcomes: list[Any], codes: list[int | None]) -> Path:
    """What the processes have to say together: the path of process 0, or the first error."""
    path = outcomes[0]
    if isinstance(path, Path) and not any(codes):
        return path
    for kind in (TkError, OSError, KeyboardInterrupt):
        for found in outcomes:
            if isinstance(found, kind):
                raise found
    said = [found for found in outcomes if isinstance(found, str)]
    raise RuntimeError("\n".join([f"training processes ended with exit codes {codes}", *said]))
