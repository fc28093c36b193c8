"""Self-supervised pre-training as a training task: crops, student, teacher, schedules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.run.config import TrainConfig
from tk.train.run.distributed import world
from tk.train.run.task import TrainTask
from tk.train.ssl.artifacts import note_artifact
from tk.train.ssl.backbone.base import Features
from tk.train.ssl.backbone.groups import parameter_groups
from tk.train.ssl.backbone.vit import NAME
from tk.train.ssl.centering.choose import make_centering
from tk.train.ssl.config import SslConfig
from tk.train.ssl.data import SslData
from tk.train.ssl.judge import Judge
from tk.train.ssl.objective import SelfDistillation
from tk.train.ssl.schedules import cosine_schedule, linear_warmup
from tk.train.ssl.start import make_student
from tk.train.ssl.teacher import follow, make_teacher
from tk.train.ssl.watch import Verdict, Watch


class SslTask(TrainTask):
    """Data, networks and loss of one run.

    Attributes:
        plan: the options, counted in steps.
        model: the teacher's backbone, which is what the training is for.
    """

    name: ClassVar[str] = "ssl"
    tie_metric: ClassVar[str] = "linear"

    def __init__(self, config: SslConfig) -> None:
        self.config = config
        _check_processes(config)
        self.student = make_student(config)
        self.data = SslData(config, self.student.backbone)
        self.plan = config.in_steps(len(self.data))
        self.epoch_steps = config.epoch_steps(len(self.data))
        self.teacher = make_teacher(self.student)
        self.model = self.teacher.backbone
        centerings = [make_centering(config, dim) for dim in config.answer_sizes()]
        self.centerings = nn.ModuleList(centerings)
        self.objective = SelfDistillation(
            self.student, self.teacher, centerings[0], centerings[-1], config
        )
        self.image_spec = ImageSpec(config.image_size, config.image_size, "stretch")
        self.eps = config.adam_eps
        self.judge = Judge(config, self.data)
        self.best_metric = self.judge.best_metric
        # Of one process's part of a batch, because that is what the entropies are of.
        pictures = 2 * config.batch_size // (world() * config.accumulate)
        self.watch = Watch(config.out_dim, pictures, self.plan.steps // 10)

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Any:
        """Crops of one picture, and masks for iBOT."""
        return self.data.sample(index, rng)

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Loss of a batch, its terms, and how sure the teacher is."""
        return self.objective(self.data.normalise(batch), self.teacher_temperature(step))

    def teacher_temperature(self, step: int) -> float:
        """Temperature of the teacher at a step."""
        config = self.config
        warmup = round(config.teacher_temp_epochs * self.epoch_steps)
        return linear_warmup(step, warmup, config.teacher_temp_start, config.teacher_temp)

    def momentum(self, step: int) -> float:
        """Share of itself that the teacher keeps at a step."""
        config = self.config
        return cosine_schedule(step, self.plan.steps, config.momentum, config.momentum_end)

    def weight_decay(self, step: int) -> float:
        """Weight decay at a step."""
        config = self.config
        ends = config.weight_decay, config.weight_decay_end
        return cosine_schedule(step, self.plan.steps, *ends)

    def learning_rate(self, step: int, config: TrainConfig) -> float:
        """Linear warm-up, then a cosine to `lr_end`."""
        plan = self.plan
        end = min(plan.lr_end, plan.lr)
        return cosine_schedule(step, plan.steps, plan.lr, end, warmup=plan.warmup)

    def before_update(self, step: int, groups: list[dict[str, Any]]) -> None:
        """Schedule the weight decay; let the last layers and the backbone wait."""
        decay = self.weight_decay(step)
        last_waits = step < round(self.config.freeze_last_layer_epochs * self.epoch_steps)
        for group in groups:
            group["weight_decay"] = decay if group["decays"] else 0.0
            if last_waits and group["last_layer"]:
                _drop_gradients(group["params"])
        if step < round(self.config.freeze_backbone_epochs * self.epoch_steps):
            _drop_gradients(self.student.backbone.parameters())

    def after_step(self, step: int) -> None:
        """Let the centres and the teacher follow."""
        self.objective.update_centres()
        follow(self.teacher, self.student, self.momentum(step))

    def parts(self) -> nn.ModuleDict:
        """Teacher (its backbone is `model`), student, centres."""
        return nn.ModuleDict(
            {
                "model": self.model,
                "teacher_heads": nn.ModuleList(self.teacher.heads()),
                "student": self.student,
                "centerings": self.centerings,
            }
        )

    def shards(self) -> list[nn.Module]:
        """With --shard every block, both backbones and all heads."""
        if not self.config.shard:
            return []
        networks = (self.student, self.teacher)
        return [
            module
            for network in networks
            for module in (*network.backbone.vit.blocks, network.backbone, *network.heads())
        ]

    def train_mode(self) -> None:
        """The student learns; of the teacher, batch norm looks at the batch as the student's."""
        self.student.train()
        self.teacher.eval()
        for head in self.teacher.heads():
            head.train()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of the student; `decays` says whose weight decay is scheduled."""
        groups = parameter_groups(
            self.student.backbone, self.student.heads(), 1.0, self.config.layer_decay
        )
        for group in groups:
            group["decays"] = group["weight_decay"] > 0
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        return groups

    def evaluate(self) -> dict[str, Any]:
        """Figures of the teacher's class token; see `Judge.measure`."""
        device = next(self.model.parameters()).device
        return dict(self.judge.measure(self.encode, device))

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's class tokens: (N, 3, S, S) normalised -> (N, D)."""
        # No inference tensors: what is sharded gathers its weights into memory that training uses.
        with torch.inference_mode(False), torch.no_grad():
            found: Features = self.model(images)
            return found.cls

    def begin(self, device: torch.device) -> None:
        """Compile, and look at the rank before the first step: later ones are held to it."""
        if self.config.compile:
            for network in (self.student, self.teacher):
                network.backbone.compile()
        if not self.config.resume:
            self.watch.rank(0, self.judge.rank(self.encode, device))

    def remarks(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Say that the training collapses, or that figures are no numbers."""
        if "event" in record:
            found = self.watch.rank(record["step"], record["rank_me"])
        else:
            found = self.watch.step(
                record["step"] - 1,
                record["dino_loss"],
                entropy=record["teacher_entropy"],
                entropy_of_mean=record["entropy_of_mean"],
            )
        return [_event(verdict) for verdict in found]

    def extra_state(self) -> dict[str, Any]:
        """What the watch remembers."""
        return {"watch": self.watch.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what the watch remembered."""
        self.watch.load_state(state["watch"])

    def epoch(self, step: int, batch_size: int) -> int:
        """Epochs of equally many steps; a pass over the pictures may end within one."""
        return step // self.epoch_steps

    def tag(self, done: int) -> str:
        """`ep005` after five epochs."""
        return f"ep{done // self.epoch_steps:03d}"

    def facts(self) -> dict[str, Any]:
        """Loss, schedules, pictures and crops, for params.json."""
        config, data = self.config, self.data
        backbone = self.student.backbone
        return {
            "model": {
                "name": config.model or NAME,
                "width": backbone.width,
                "depth": backbone.depth,
                "patch_size": backbone.patch_size,
                "parameters": sum(p.numel() for p in backbone.parameters()),
            },
            "schedule": f"linear warm-up of {self.plan.warmup} steps, "
            f"then cosine to {config.lr_end:g}",
            "weight_decay": f"cosine, {config.weight_decay:g} to {config.weight_decay_end:g}",
            "momentum": f"cosine, {config.momentum:g} to {config.momentum_end:g}",
            "pictures": len(data),
            "left_out": len(data.photos.skipped),
            "mean": list(data.spec.mean),
            "std": list(data.spec.std),
            "crops": f"2 of {data.spec.global_size}, {data.spec.local_count} of "
            f"{data.spec.local_size} pixels",
            "best_by": self.best_metric,
        }

    def saved(self, path: Path, done: int) -> None:
        """Note the checkpoint in artifacts.json."""
        names = self.config.file_names()
        kinds = {names.last: "checkpoint_last", names.best: "checkpoint_best"}
        figures = {"step": done, "epoch": self.epoch(done - 1, self.config.batch_size) + 1}
        note_artifact(
            self.config.out, kinds.get(path.name, path.stem), path, figures | self.labels()
        )

    def labels(self) -> dict[str, Any]:
        """What the user calls the run, for metadata of its files."""
        config = self.config
        return {
            "experiment": config.experiment_name,
            "tags": list(config.experiment_tag),
            "notes": config.experiment_notes,
            "stream": config.stream,
            "algorithm": config.algorithm,
        }

    def data_facts(self) -> dict[str, str]:
        """Training and labelled pictures."""
        return {**self.data.photos.facts(), **self.judge.facts()}


def _check_processes(config: SslConfig) -> None:
    """Refuse what does not work in several processes, or only there."""
    if config.shard and world() == 1:
        raise TkError(
            "--shard divides a training among several processes",
            expected="--gpus 2 or more, or torchrun",
            found="one process",
            fix="more processes, or no --shard",
        )
    # Each process would take its own part of a batch for the whole: another training.
    if world() > 1 and config.head_norm == "batch":
        raise TkError(
            f"batch norm in the heads does not work in {world()} processes",
            fix="--head-norm none, or one process",
        )


def _event(verdict: Verdict) -> dict[str, Any]:
    text = f"warning: {verdict.text}; what may help: {verdict.fix}"
    return {"event": "collapse", "kind": verdict.kind, "text": text}


def _drop_gradients(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
