"""State and single moves of one training run: step, evaluate, save, resume."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tk.runtime.errors import TkError
from tk.runtime.preprocess import spec_to_json
from tk.train.run.average import Average
from tk.train.run.checkpoint import load_checkpoint, save_checkpoint
from tk.train.run.config import TrainConfig
from tk.train.run.device import choose_device, uses_bfloat16
from tk.train.run.distributed import (
    barrier,
    broadcast,
    first,
    gather,
    is_main,
    mean_of,
    rank,
    world,
)
from tk.train.run.folder import RunFolder
from tk.train.run.loading import batch_loader, check_batches, to_device
from tk.train.run.rng import rng_state, seed_all, set_rng_state
from tk.train.run.sharding import optimizer_parts, parts_like, shard, whole, whole_tensor
from tk.train.run.task import TrainTask
from tk.train.run.tracker import NoTracker, Outcome, Tracker
from tk.train.run.tracking import check_tracker, open_tracker


class Objective(nn.Module):
    """The loss of a task as a module, which is what DistributedDataParallel wants to wrap."""

    def __init__(self, task: TrainTask, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.task, self.parts = task, parts

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars of a batch; see `TrainTask.loss`."""
        return self.task.loss(batch, step)


class Trainer:
    """One `fit` call, in one of its processes; files are written by process 0 alone."""

    def __init__(self, task: TrainTask, config: TrainConfig) -> None:
        self.task, self.config = task, config
        self.folder = RunFolder(config.out, config.file_names())
        self.device = choose_device(config.device)
        if world() > 1 and self.device.type == "cuda":
            # timm's, not torch's: that one drops the activation inside timm's BatchNormAct2d.
            task.model = convert_sync_batchnorm(task.model)  # type: ignore[no-untyped-call]
        self.parts = task.parts().to(self.device)
        self.sharded = task.shards()
        if self.sharded:
            shard(self.sharded, self.device)
        self.objective: nn.Module = Objective(task, self.parts)
        self.average = Average(self.parts, config.ema_decay) if config.ema_decay else None
        groups = task.parameter_groups(config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=task.betas, eps=task.eps)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.half = uses_bfloat16(config.precision, self.device)
        self.best: dict[str, float] = {}
        self.tracker: Tracker = NoTracker()
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Tell the user and the log."""
        if is_main():
            self.folder.log(text)
            print(text, file=sys.stderr)

    def log(self, text: str) -> None:
        """Tell the log."""
        if is_main():
            self.folder.log(text)

    def record(self, record: dict[str, Any]) -> None:
        """Add a line to the metrics and send it to the tracker."""
        if is_main():
            self.folder.append_metrics(record)
            self.tracker.record(record)

    def start(self) -> int:
        """Begin a new run; returns the first step, 0."""
        check_batches(self.task, self.config)
        check_tracker(self.config)
        if is_main():
            self.folder.start(self.config.resolved(), self.facts(), overwrite=self.config.overwrite)
        count = sum(p.numel() for p in self.parameters)
        where = f"{world()} x {self.device.type}" if world() > 1 else str(self.device)
        self.log(f"start: {len(self.task)} samples, {count} parameters, {where}")
        self.task.train_mode()
        if rank():  # each process draws its own dropout
            seed_all(self.config.seed, rank())
        self._wrap()
        return 0

    def facts(self) -> dict[str, Any]:
        """Optimizer, schedule and what the task adds, for config.json."""
        config = self.config
        groups = [
            {
                "lr": config.lr * group.get("lr_scale", 1.0),
                "weight_decay": group["weight_decay"],
                "parameters": sum(p.numel() for p in group["params"]),
            }
            for group in self.optimizer.param_groups
        ]
        return {
            "optimizer": {
                "name": "AdamW",
                "betas": list(self.task.betas),
                "eps": self.optimizer.defaults["eps"],
                "groups": groups,
            },
            "schedule": f"linear warm-up of {config.warmup} steps, then cosine to 0",
            "gradient_norm_at_most": config.clip,
            "forward": "bfloat16" if self.half else "float32",
            "device": self.device.type,
            "processes": world(),
            **self.task.facts(),
        }

    def resume(self) -> int:
        """Go on from a checkpoint; returns the first step to make."""
        path = self.folder.last if self.config.resume == "last" else Path(self.config.resume)
        path = path / self.folder.last.name if path.is_dir() else path
        state = load_checkpoint(path, self.task.name)
        if "optimizer" not in state:
            raise TkError(f"{path} holds a model only, no run to go on with")
        _refuse_other_config(json.loads(state["config"]), self.config)
        _refuse_other_data(state["data"], self.task.data_facts())
        check_batches(self.task, self.config)
        check_tracker(self.config)
        self._load_weights(state, path)
        if is_main():
            self.task.load_extra_state(state["extra"])
        self.best = dict(state["best"])
        step = int(state["step"])
        if is_main():
            self.folder.take_over(path)
            self.folder.write_config(self.config.resolved(), self.facts())
            self.folder.cut_metrics(step)
            if step < self.config.steps:
                self.folder.remove_results()
        self.say(f"going on from {path.name} at step {step}")
        self.task.train_mode()
        self._wrap()
        if rank() < len(state["rng"]):
            set_rng_state(state["rng"][rank()])
        if len(state["rng"]) != world():
            text = f"this run had {len(state['rng'])} processes and has {world()} now"
            self.say(f"{text}: it goes on, but not as it would have to the last bit")
        return step

    def _load_weights(self, state: dict[str, Any], path: Path) -> None:
        weights = {"model": state["model"], **state["others"]}
        try:
            for name, part in self.parts.items():
                part.load_state_dict(parts_like(part.state_dict(), weights[name]))
        except (RuntimeError, KeyError) as error:
            raise TkError(
                f"the weights in {path} do not fit this run",
                found=" ".join(str(error).split())[:300],
                fix="resume a checkpoint of the same options",
            ) from None
        self.optimizer.load_state_dict(optimizer_parts(state["optimizer"], self.parameters))
        if self.average:
            self.average.load_state_dict(
                {name: value.to(self.device) for name, value in state["average"].items()}
            )

    def _wrap(self) -> None:
        """Average gradients over the processes from now on; weights start as those of rank 0."""
        if world() > 1 and not self.sharded:
            # Of 1x1 kernels, whose strides are a matter of taste: no reason to talk to the user.
            warnings.filterwarnings("ignore", "Grad strides do not match")
            self.objective = DistributedDataParallel(self.objective)

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Send what is recorded inside to the tracker that the user asked for."""
        if is_main():
            self.tracker = open_tracker(self.config, self.task.name)
        outcome: Outcome = "failed"
        try:
            yield
            outcome = "finished"
        except KeyboardInterrupt:
            outcome = "interrupted"
            raise
        finally:
            self.tracker.close(outcome)
            self.tracker = NoTracker()

    def batches(self, start: int) -> Iterator[list[Any]]:
        """Yield the parts of each batch that are this process's, on the CPU."""
        loader = iter(batch_loader(self.task, self.config, start))
        for _ in range(start, self.config.steps):
            yield [next(loader) for _ in range(self.config.accumulate)]

    def step(self, batch: list[Any], step: int) -> dict[str, Any]:
        """One optimizer step; returns its metrics record."""
        config = self.config
        lr = self.task.learning_rate(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        values = self._gradients(batch, step)
        self.task.before_update(step, self.optimizer.param_groups)
        norm = whole_tensor(nn.utils.clip_grad_norm_(self.parameters, config.clip))
        self.optimizer.step()
        if self.average:
            self.average.update(step)
        self.task.after_step(step)
        epoch = self.task.epoch(step, config.batch_size) + 1
        record = {"step": step + 1, "epoch": epoch, "lr": lr, **values, "grad_norm": float(norm)}
        self._note(record)
        return record

    def _note(self, record: dict[str, Any]) -> None:
        """Record figures, and what the task has to say about them."""
        self.record(record)
        for remark in self.task.remarks(record):
            self.record({"step": record["step"], "epoch": record["epoch"], **remark})
            self.say(remark["text"])

    def _gradients(self, batch: list[Any], step: int) -> dict[str, float]:
        """Mean gradient over the parts of a batch and the processes; returns mean scalars."""
        found: list[dict[str, Tensor]] = []
        for number, part in enumerate(batch, 1):
            with self._reduce_on(number == len(batch)):
                on_device = to_device(part, self.device)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    losses = self.objective(on_device, step)
                (losses["loss"] / len(batch)).backward()
            found.append({name: value.detach() for name, value in losses.items()})
        names = list(found[0])
        table = torch.stack([torch.stack([part[n].float() for n in names]) for part in found])
        values = dict(zip(names, mean_of(table.mean(dim=0).cpu()).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise TkError(
                f"the loss is {values['loss']} at step {step}",
                found=", ".join(f"{name} {value:.4g}" for name, value in values.items()),
                fix="a smaller --lr, a longer --warmup, or --precision float32",
            )
        return values

    def _reduce_on(self, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients once per step, after its last part."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return nullcontext()

    def evaluate(self, done: int) -> None:
        """Measure on the held-out share and keep the best."""
        self._same_buffers()
        self.task.model.eval()
        with torch.inference_mode(), self._results():
            figures = first(self.task.evaluate())
        self.task.train_mode()
        if not figures:
            return
        epoch = self.task.epoch(done - 1, self.config.batch_size) + 1
        self._note({"event": "eval", "step": done, "epoch": epoch, **figures})
        self.say(f"step {done}, epoch {epoch}: {describe(figures)}")
        for table, rows in figures.items():
            if isinstance(rows, dict):
                for kind, row in rows.items():
                    self.log(f"  {table}, {kind}: {describe(row)}")
        name = self.task.best_metric
        value = figures.get(name)
        if value is None or not math.isfinite(value):
            return
        # On easy data many evaluations are perfect; the tie metric still tells them apart.
        found = (float(value), float(figures.get(self.task.tie_metric) or 0.0))
        if found > (self.best.get("value", -math.inf), self.best.get("tie", -math.inf)):
            self.best = {"value": found[0], "tie": found[1], "step": done}
            self.save(self.folder.best, done)
            self.log(f"best so far: {name} {value:.4f}")
            self.record(
                {"event": "best", "step": done, "epoch": epoch, "metric": name, "value": value}
            )

    def _same_buffers(self) -> None:
        """Statistics of batch norm are each process's own; those of process 0 are the run's."""
        buffers = [*self.parts.buffers()]
        if self.average:
            buffers += self.average.buffers()
        broadcast(buffers)

    def _results(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average else nullcontext()

    def save(self, path: Path, done: int) -> None:
        """Write a checkpoint of the state after `done` steps; all processes call it."""
        task, crop = self.task, self.task.crop_spec
        rng, extra = gather(rng_state()), task.extra_state()
        model, optimizer = whole(task.model.state_dict()), whole(self.optimizer.state_dict())
        others = {
            name: dict(whole(part.state_dict()))
            for name, part in self.parts.items()
            if name != "model"
        }
        if not is_main():
            return
        save_checkpoint(
            path,
            {
                "task": task.name,
                "architecture": task.architecture,
                "config": json.dumps(self.config.resolved()),
                "classes": json.dumps(task.classes, ensure_ascii=False),
                "image_spec": json.dumps(spec_to_json(task.image_spec)),
                "crop_spec": json.dumps(spec_to_json(crop)) if crop else "",
                "step": done,
                "epoch": task.epoch(done, self.config.batch_size),
                "data": task.data_facts(),
                "model": model,
                "others": others,
                "average": self.average.state_dict() if self.average else {},
                "optimizer": optimizer,
                "extra": extra,
                "rng": rng,
                "best": self.best,
            },
        )
        task.saved(path, done)

    def interrupted(self, done: int) -> None:
        """Save and stop."""
        self.save(self.folder.last, done)
        if is_main():
            self.folder.mark_interrupted()
        barrier()  # nobody leaves while process 0 still writes
        self.say("; ".join(filter(None, (f"interrupted after step {done}", self.config.goes_on))))
        raise KeyboardInterrupt

    def finished(self, start: int) -> None:
        """Log the speed and tidy up."""
        seconds = time.monotonic() - self.started
        rate = (self.config.steps - start) * self.config.batch_size / max(seconds, 1e-9)
        self.log(f"finished: {self.config.steps} steps, {seconds:.1f} s, {rate:.1f} samples/s")
        if is_main():
            self.folder.interrupt.unlink(missing_ok=True)
        barrier()  # so that every process finds the last files

    def result(self) -> Path:
        """The checkpoint to use: the best, if it is still that of this run."""
        if not self.best:
            return self.folder.last
        best = self.folder.best
        if best.exists() and load_checkpoint(best, self.task.name)["step"] == self.best["step"]:
            return best
        self.say(f"the best weights (step {self.best['step']:.0f}) are gone: the last are used")
        return self.folder.last


def describe(figures: dict[str, Any]) -> str:
    """The plain numbers of an evaluation as one line: `val_loss 0.1234, val_accuracy 0.9876`."""
    plain = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    return ", ".join(f"{name} {value:.4f}" for name, value in plain.items())


def _refuse_other_data(before: dict[str, str], now: dict[str, str]) -> None:
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        raise TkError(
            "the data changed since this run began, and a resume must go on as it began",
            expected=", ".join(f"{name} {before.get(name, 'none')}" for name in differing),
            found=", ".join(f"{name} {now.get(name, 'none')}" for name in differing),
            fix="put the files back, or start a new run in another --out (or with --overwrite)",
        )


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
