"""The one training loop: a fixed number of optimizer steps, resumable to the bit on the CPU."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.preprocess import spec_to_json
from tk.runtime.progress import progress
from tk.train.run.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from tk.train.run.config import TrainConfig
from tk.train.run.folder import RunFolder
from tk.train.run.loading import batch_loader, to_device
from tk.train.run.sampling import epoch_of
from tk.train.run.schedule import warmup_cosine
from tk.train.run.stop import StopRequest
from tk.train.run.task import TrainTask


def fit(task: TrainTask, config: TrainConfig) -> Path:
    """Train `task` as `config` says.

    Call `prepare(config)` before building the task, so that its weights follow the seed.

    Returns:
        the best checkpoint, or the last if there is no figure to choose by.

    Raises:
        TkError: a loss that is not finite, a run in the folder, a resume that does not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last whole step has been written to a checkpoint.
    """
    run = _Run(task, config)
    start = run.resume() if config.resume else run.start()
    if start >= config.steps:
        run.say(f"{config.out} is finished already ({config.steps} steps): nothing to do")
        return run.result()
    with StopRequest() as stop, progress(f"train {task.name}", config.steps - start) as bar:
        for step, batch in enumerate(run.batches(start), start):
            record = run.step(batch, step)
            done = step + 1
            if done == config.steps or (config.eval_every and done % config.eval_every == 0):
                record |= run.evaluate(done)
            run.folder.append_metrics(record)
            bar.advance(note=f"loss {record['loss']:.4f}")
            if stop.requested:
                run.interrupted(done)
            if done == config.steps or (config.save_every and done % config.save_every == 0):
                run.save(run.folder.last, done)
    run.finished(start)
    return run.result()


def prepare(config: TrainConfig) -> None:
    """Seed the global generators and set the number of threads."""
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` into a device.

    Raises:
        EnvironmentLacks: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TkError("unknown device", expected="auto, cpu, cuda or cuda:N", found=name) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentLacks(
            f"there is no device {name}",
            found=f"{torch.cuda.device_count()} CUDA devices",
            fix="--device cpu",
        )
    return device


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Say whether the forward pass runs in bfloat16; `auto` takes it where hardware has it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without these instructions a CPU emulates bfloat16, slower than float32.
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


class _Run:
    """State of one `fit` call."""

    def __init__(self, task: TrainTask, config: TrainConfig) -> None:
        self.task, self.config = task, config
        self.folder = RunFolder(config.out)
        self.device = choose_device(config.device)
        task.to(self.device)
        groups = task.parameter_groups(config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=task.betas)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.half = uses_bfloat16(config.precision, self.device)
        self.best: dict[str, float] = {}
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        self.folder.log(text)
        print(text, file=sys.stderr)

    def start(self) -> int:
        self.folder.start(self.config.resolved(), overwrite=self.config.overwrite)
        count = sum(p.numel() for p in self.parameters)
        self.folder.log(f"start: {len(self.task)} samples, {count} parameters, {self.device}")
        self.task.train_mode()
        return 0

    def resume(self) -> int:
        path = self.folder.last if self.config.resume == "last" else Path(self.config.resume)
        state = load_checkpoint(
            path / "checkpoint_last.pth" if path.is_dir() else path, self.task.name
        )
        if "optimizer" not in state:
            raise TkError(f"{path} holds a model only, no run to go on with")
        _refuse_other_config(json.loads(state["config"]), self.config)
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.load_extra_state(state["extra"])
        self.best = dict(state["best"])
        step = int(state["step"])
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.write_config(self.config.resolved())
        self.folder.cut_metrics(step)
        self.folder.log(f"resume from {path.name} at step {step}")
        self.task.train_mode()
        set_rng_state(state["rng"])
        return step

    def batches(self, start: int) -> Iterator[Any]:
        loader = batch_loader(self.task, self.config, start)
        return (to_device(batch, self.device) for batch in loader)

    def step(self, batch: Any, step: int) -> dict[str, Any]:
        """One optimizer step; returns the metrics record."""
        config = self.config
        lr = warmup_cosine(step, config.steps, config.warmup, config.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            losses = self.task.loss(batch, step)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            raise TkError(
                f"the loss is {values['loss']} at step {step}",
                found=", ".join(f"{name} {value:.4g}" for name, value in values.items()),
                fix="a smaller --lr, a longer --warmup, or --precision float32",
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm: Tensor = nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        self.task.after_step(step)
        epoch = epoch_of(step, config.batch_size, len(self.task))
        return {"step": step + 1, "epoch": epoch, "lr": lr, **values, "grad_norm": float(norm)}

    def evaluate(self, done: int) -> dict[str, float]:
        """Measure on the held-out share and keep the best."""
        self.task.model.eval()
        with torch.inference_mode():
            figures = self.task.evaluate()
        self.task.train_mode()
        if figures:
            text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.folder.log(f"step {done}: {text}")
        value = figures.get(self.task.best_metric)
        if value is not None and math.isfinite(value) and value > self.best.get("value", -math.inf):
            self.best = {"value": float(value), "step": done}
            self.save(self.folder.best, done)
        return figures

    def save(self, path: Path, done: int) -> None:
        """Write a checkpoint of the state after `done` steps."""
        task, crop = self.task, self.task.crop_spec
        save_checkpoint(
            path,
            {
                "task": task.name,
                "config": json.dumps(self.config.resolved()),
                "classes": json.dumps(task.classes, ensure_ascii=False),
                "image_spec": json.dumps(spec_to_json(task.image_spec)),
                "crop_spec": json.dumps(spec_to_json(crop)) if crop else "",
                "step": done,
                "epoch": epoch_of(done, self.config.batch_size, len(task)),
                "model": task.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "extra": task.extra_state(),
                "rng": rng_state(),
                "best": self.best,
            },
        )

    def interrupted(self, done: int) -> None:
        self.save(self.folder.last, done)
        self.save(self.folder.interrupt, done)
        self.say(f"interrupted after step {done}; go on with --resume last")
        raise KeyboardInterrupt

    def finished(self, start: int) -> None:
        seconds = time.monotonic() - self.started
        rate = (self.config.steps - start) * self.config.batch_size / max(seconds, 1e-9)
        self.folder.log(
            f"finished: {self.config.steps} steps, {seconds:.1f} s, {rate:.1f} samples/s"
        )
        self.folder.interrupt.unlink(missing_ok=True)

    def result(self) -> Path:
        return self.folder.best if self.folder.best.exists() else self.folder.last


def _refuse_other_config(before: dict[str, Any], config: TrainConfig) -> None:
    now = config.resolved()
    names = sorted((set(before) | set(now)) - config.may_differ)
    differing = [name for name in names if before.get(name) != now.get(name)]
    if differing:
        raise TkError(
            "this run was started with other options, and a resume must go on as it began",
            expected=", ".join(f"{name}={before.get(name)!r}" for name in differing),
            found=", ".join(f"{name}={now.get(name)!r}" for name in differing),
            fix="give the same options, or start a new run in another --out",
        )
