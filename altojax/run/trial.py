"""A trial: what it is, fixed for the run, and how far it has come, which a checkpoint keeps."""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pydantic

from altojax.adapters.peft_files import Adapter
from altojax.adapters.target_modules import Modules
from altojax.config.objectives import PREFERENCE_KEYS, ObjectiveName, preference_numbers, reads
from altojax.config.search.space import TrialConfig
from altojax.device.batch import Stream
from altojax.device.optimizer import SCHEDULES
from altojax.early_exit.curve import Curve, average_name
from altojax.early_exit.metric import Score
from altojax.early_exit.milestones import MilestoneSchedule, schedule
from altojax.packing.slot_admission import Load

Phase = Literal["planned", "waiting", "running", "rung", "done"]


SHAPE = ("lora_rank", "lora_alpha", "use_rslora", "target_modules", "target_parameters")
"""Fields of a configuration that are the adapter's from which a trial starts."""


@dataclass(frozen=True)
class TrialStart:
    """The adapter that a trial starts from.

    Attributes:
        essence: Names it: the digest of an adapter in a folder, or the task whose best it is.
        folder: Where it is, None where it is the best of a task.
        task: The task whose best it is, None where it is in a folder.
        trial: Name of that best, None until its task has ended.
        adapter: The arrays of one in a folder, by projection.
    """

    essence: str
    folder: str | None = None
    task: str | None = None
    trial: str | None = None
    adapter: Adapter | None = field(default=None, compare=False, repr=False)

    @classmethod
    def best_of(cls, task: str) -> "TrialStart":
        """Returns the best of a task, whichever that will be."""
        return cls(f"best of {task}", task=task)

    @property
    def known(self) -> bool:
        """Whether it is known which adapter it is."""
        return self.task is None or self.trial is not None

    def __str__(self) -> str:
        """Names it in words."""
        if self.task is None:
            return str(self.folder)
        return f"the best of {self.task}" if self.trial is None else f"{self.task}/{self.trial}"


@dataclass(frozen=True)
class Trial:
    """One configuration of one task.

    Attributes:
        index: Its number in the run.
        task: The task's name.
        name: Its own name within the task.
        config: Its hyper-parameters.
        modules: Projection key -> layers it adapts.
        stream: Its samples, in order.
        seed: Of its adapter and its dropout.
        length: Tokens of its longest training row.
        eval_steps: Optimizer steps after which it is evaluated; the last one is the end.
        rungs: Optimizer step of each rung, where it is compared with its peers.
        every_steps: Optimizer steps between evaluations.
        row_tokens: Of its training rows on average.
        proposed: Whether its configuration is decided while others run, when a slot falls free.
        around: Names of the trials around which it was proposed; None before that, and of others.
        start: The adapter that it starts from, None where that is random. Until it is known the trial stands for one
            of that adapter's shape.
        objective: What it minimizes.
    """

    index: int
    task: str
    name: str
    config: TrialConfig
    modules: Modules
    stream: Stream
    seed: int
    length: int
    eval_steps: tuple[int, ...] = ()
    rungs: tuple[int, ...] = ()
    every_steps: float = 1.0
    row_tokens: float = 0.0
    proposed: bool = False
    around: tuple[str, ...] | None = None
    start: TrialStart | None = None
    objective: ObjectiveName = "sft"

    @property
    def decided(self) -> bool:
        """Whether its configuration is known."""
        return (not self.proposed or self.around is not None) and (self.start is None or self.start.known)

    @property
    def full_name(self) -> str:
        """Its task and its name, which no other trial of the run has."""
        return f"{self.task}/{self.name}"

    @cached_property
    def load(self) -> Load:
        """Its load on a step, whatever the device."""
        group = self.stream.samples.group
        rows = min(self.config.batch_size, self.stream.total_samples) * group
        return Load(self.index, rows, self.row_tokens, self.length, self.micro_steps, group)

    @property
    def micro_steps(self) -> int:
        """Training steps of its whole schedule, each micro-batch one."""
        return self.stream.total_steps * self.config.gradient_accumulation_steps

    @property
    def schedule(self) -> MilestoneSchedule:
        """Steps at which it may be compared with its peers."""
        return schedule(self.stream.total_steps, self.every_steps, self.config.warmup_ratio)

    @property
    def accumulates(self) -> bool:
        """Whether it gathers gradients over several micro-batches."""
        return self.config.gradient_accumulation_steps > 1

    @property
    def keys(self) -> tuple[str, ...]:
        """Projections it adapts."""
        return tuple(self.modules)

    @property
    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters as plain data, with what its config leaves to the run; without what is not known yet."""
        unread = {key for key in PREFERENCE_KEYS if not reads(self.objective, self.config.loss_type, key)}
        said = self.config.model_dump(mode="json", exclude=unread)
        told = {**said, "lora_alpha": self.config.alpha, "seed": self.seed}
        open_yet = () if self.start is None or self.start.known else SHAPE
        return {name: value for name, value in told.items() if name not in open_yet}

    def hyper(self) -> dict[str, float]:
        """Its entry in every array of `altojax.device.optimizer.Hyper`, and the numbers that its objective reads."""
        config, steps = self.config, self.stream.total_steps
        own = preference_numbers(config) if self.objective == "dpo" else {}
        return own | {
            "scale": config.scale,
            "dropout": config.lora_dropout,
            "learning_rate": config.learning_rate,
            "schedule": SCHEDULES.index(config.lr_scheduler_type),
            "warmup_steps": math.ceil(config.warmup_ratio * steps) if config.warmup_ratio else 0,
            "decay_steps": math.ceil(config.decay_ratio * steps),
            "total_steps": steps,
            "min_lr_ratio": config.min_lr_ratio,
            "weight_decay": config.weight_decay,
            "beta1": config.adam_beta1,
            "beta2": config.adam_beta2,
            "epsilon": config.adam_epsilon,
            "max_grad_norm": config.max_grad_norm,
        }

    def identity(self) -> Hashable:
        """Everything that its training depends on: trials of a task that have it in common come out the same."""
        hyper, config = self.hyper(), self.config
        shape = config.lr_scheduler_type
        unused = {"decay_steps"} if shape != "warmup_stable_decay" else set()
        unused |= {"min_lr_ratio"} if shape in ("constant", "linear") else set()
        sizes = config.lora_rank, config.batch_size, config.gradient_accumulation_steps, self.stream.total_samples
        start = self.start
        unused |= {"scale"} if start is not None and start.task is not None else set()
        numbers = tuple((name, value) for name, value in hyper.items() if name not in unused)
        if start is None:
            return self.seed, sizes, tuple(self.modules.items()), numbers
        seed = self.seed if config.lora_dropout else None  # nothing else is drawn
        if start.task is None:
            return seed, sizes, tuple(self.modules.items()), numbers, start.essence
        return seed, sizes[1:], numbers, start.essence


@dataclass
class TrialProgress:
    """The progress of a trial; plain data, so that a checkpoint can hold it.

    Attributes:
        phase: planned until its configuration is decided, waiting for a slot, running in one, parked at a rung until
            its peers arrive, or done.
        slot: Where it runs.
        step: Optimizer steps done.
        micro: Micro-batches of the next step done.
        tokens: Real tokens trained on.
        rung: Rungs at which it was compared.
        loss_sum, loss_steps: Training loss summed over the optimizer steps since the last evaluation.
        grad_norm: Norm of the gradient of the newest optimizer step, before clipping.
        bad_steps: Steps in a row that were skipped because their gradient was not finite.
        fraction, train_loss, val_loss: The recorded curve, one entry an evaluation.
        average_losses: Losses of the running averages at each of these, one a window; none where not measured.
        scores: What was measured of the run's metric at each of these, by its names in curves.
        best_loss, best_step: Of the adapter that is its result so far.
        best_metric: Likewise, with its error; none where not measured.
        best_average: Whether that is the running average of the first window.
        status, reason, detail: How it ended.
        slot_s: Seconds spent in a slot, shared evenly among the slots of each step.
    """

    phase: Phase = "waiting"
    slot: int | None = None
    step: int = 0
    micro: int = 0
    tokens: int = 0
    rung: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    grad_norm: float | None = None
    bad_steps: int = 0
    fraction: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    average_losses: list[list[float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0
    best_metric: list[float] = field(default_factory=list)
    best_average: bool = False
    status: str = ""
    reason: str = ""
    detail: str = ""
    slot_s: float = 0.0

    @property
    def best_score(self) -> Score:
        """Of the adapter that is its result so far."""
        return Score.of(self.best_metric, self.best_loss)

    def curve(self, until: float = 1.0) -> Curve:
        """The recorded curve, as the early-exit rules read it, up to a share of the schedule."""
        windows = max(map(len, self.average_losses), default=0)
        means = [np.array([_measured(losses, window) for losses in self.average_losses]) for window in range(windows)]
        more = {average_name(window): losses for window, losses in enumerate(means)}
        for name in {name for one in self.scores for name in one}:
            more[name] = np.array([one.get(name, math.nan) for one in self.scores])
        curve = Curve(np.asarray(self.fraction), np.asarray(self.train_loss), np.asarray(self.val_loss), more)
        return curve.first(sum(fraction <= until + 1e-9 for fraction in self.fraction))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint's manifest; exact for every finite float, and for inf and nan as text."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrialProgress":
        """The inverse of `to_dict`.

        Raises:
            pydantic.ValidationError: The data is none.
        """
        return _PROGRESS.validate_python({name: _number(value, name) for name, value in data.items()})


_PROGRESS: pydantic.TypeAdapter[TrialProgress] = pydantic.TypeAdapter(TrialProgress)


def _measured(losses: Sequence[float], window: int) -> float:
    """Returns the loss of an average: nan where it was not measured, inf where it was not finite."""
    if not losses:
        return math.nan
    return losses[window] if math.isfinite(losses[window]) else math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_number(one, name) for one in value]
    return float(value) if value in ("inf", "-inf", "nan") and name not in ("status", "reason", "detail") else value
