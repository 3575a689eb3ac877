"""The config of a simulation: cluster, tasks (listed, traced or drawn), faults, scheduling policy."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import pydantic

from altojax.cluster.scheduling.policy import Planner, Policy, Seconds
from altojax.early_exit.rules import EarlyExit, Rules
from jaxrun.config.config import StrictModel

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]
MOST_NODES = 10_000
MOST_TASKS = 1_000_000
"""Tasks of a workload."""
NodeGpus = Annotated[int, pydantic.Field(ge=1, le=10_000)]
"""GPUs of a node."""
Many = Annotated[int, pydantic.Field(ge=1, le=MOST_TASKS)]


def _ordered(given: tuple[float, float]) -> tuple[float, float]:
    if given[0] > given[1]:
        raise ValueError("expected the least first, then the most")
    return given


Range = Annotated[tuple[Positive, Positive], pydantic.AfterValidator(_ordered)]
Shares = Annotated[tuple[Share, Share], pydantic.AfterValidator(_ordered)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Serial = Annotated[tuple[Fraction, Fraction], pydantic.AfterValidator(_ordered)]


def _nodes(given: Any) -> Any:
    """Reads ``4x8``, four nodes of eight GPUs, or ``8``, one node."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return given
    nodes, cross, gpus = str(given).rpartition("x")
    if not ((nodes or not cross) and gpus.isdecimal() and (nodes or "1").isdecimal()):
        raise ValueError("expected nodes and GPUs such as 4x8, or {a: 8, b: 4}")
    if int(nodes or 1) > MOST_NODES:
        raise ValueError(f"expected at most {MOST_NODES:,} nodes")
    return {f"node-{number + 1}": int(gpus) for number in range(int(nodes or 1))}


class ReplayedConfig(StrictModel):
    """The share of a task that early exit leaves, by a replay of recorded learning curves.

    Attributes:
        curves: A run's folder, or a CSV as ``altojax replay`` reads it; relative to the workload's folder.
        group: The group of trials, or the task of the run; null is all of them, each among its own.
        early_exit: The rules.
    """

    curves: str
    group: str | None = None
    early_exit: EarlyExit = pydantic.Field(default_factory=Rules)


class FamilyConfig(StrictModel):
    """By what tasks can be merged; see `altojax.cluster.scheduling.resources.job.TaskFamily`.

    Attributes:
        key: Tasks of one tenant with equal keys can be merged.
        trials: Trials of the task.
        batch: Mean samples of a trial's step.
        slots: GPUs -> trials that train at once.
        step_s: GPUs -> seconds of a step whatever rides along.
        sample_s: GPUs -> seconds more for each sample of a step.
    """

    key: str
    trials: Count
    batch: Positive = 1.0
    slots: dict[int, Count]
    step_s: dict[int, Seconds]
    sample_s: dict[int, Positive]


class SimulatedTasks(StrictModel):
    """One task, or several that are alike.

    Attributes:
        name: Names it; those of several are numbered.
        tenant: Whose it is.
        group: Decides its colour in the picture, such as its model; empty is its tenant.
        arrival_s: When it is submitted.
        speeds: GPUs -> samples a second.
        alone_speeds: The same with one trial at a time, for ``batching: false``.
        samples: Samples that it asks for, over all of its trials.
        kept: Share of them that is left by early exit.
        replayed: Where that share comes from instead.
        setup_s: Seconds from a start to the first sample.
        family: By what it can be merged.
        count: How many of them there are.
        every_s: Seconds between their arrivals.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    tenant: str = "default"
    group: str = ""
    arrival_s: Seconds = 0.0
    speeds: Annotated[dict[int, Positive], pydantic.Field(min_length=1)]
    alone_speeds: dict[int, Positive] = pydantic.Field(default_factory=dict)
    samples: Positive
    kept: Share = 1.0
    replayed: ReplayedConfig | None = None
    setup_s: Seconds = 0.0
    family: FamilyConfig | None = None
    count: Many = 1
    every_s: Seconds = 0.0

    @pydantic.model_validator(mode="after")
    def _one_share(self) -> Self:
        if self.replayed is not None and "kept" in self.model_fields_set:
            raise ValueError("given kept and replayed, expected one of them")
        return self


class RandomConfig(StrictModel):
    """Tasks that are drawn.

    A task takes d seconds on one GPU, and d · (s + (1 − s) / g) on g (Amdahl); d is drawn log-uniformly, s and kept
    uniformly.

    Attributes:
        count: How many.
        widths: GPU counts; a task can use some that follow each other, more often from the first on.
        duration_s: Least and most d.
        serial: Least and most s.
        kept: Least and most share of the samples that early exit leaves.
        every_s: Mean seconds between arrivals, exponentially distributed; 0 is all at once.
        setup_s: Seconds from a start to the first sample.
        tenants: How often tasks of each tenant are drawn.
    """

    count: Many
    widths: Annotated[tuple[Count, ...], pydantic.Field(min_length=1)] = (1, 2, 4, 8)
    duration_s: Range = (600.0, 60_000.0)
    serial: Serial = (0.0, 0.1)
    kept: Shares = (1.0, 1.0)
    every_s: Seconds = 0.0
    setup_s: Seconds = 0.0
    tenants: dict[str, Positive] = pydantic.Field(default_factory=lambda: {"default": 1.0}, min_length=1)


class FailureConfig(StrictModel):
    """Failures; times between them are exponentially distributed.

    Attributes:
        node_every_s: Mean seconds between failures of a node; null is never.
        repair_s: Seconds that a node is away.
        task_every_s: Mean seconds of training between failures of a task; null is never.
        checkpoint_s: Seconds of training between checkpoints: what is since the last is lost.
    """

    node_every_s: Positive | None = None
    repair_s: Positive = 600.0
    task_every_s: Positive | None = None
    checkpoint_s: Positive = 300.0


class Workload(StrictModel):
    """A simulation.

    Attributes:
        cluster: Node -> GPUs, or ``4x8`` for four nodes of eight.
        tasks: Tasks as listed.
        trace: A file beside the workload with a task a line, ``.jsonl`` or ``.csv``.
        random: Tasks as drawn.
        policy: How ours schedules; quotas, patience, retries and costs are the same for the others.
        rivals: What it is compared with.
        ablation: What stands for no scheduling, where the ablation is asked for: scheduling, batching and early exit.
        seed: Of everything that is drawn.
        early_exit: Whether trials are ended early; false runs all samples.
        batching: Whether trials share a base; false takes ``alone_speeds``.
        known_after: Share of a task's training after which what is left of it is known; null is its end.
        noise: Standard deviation of the logarithm of an estimated speed over the true one.
        failures: What goes wrong.
    """

    cluster: Annotated[dict[str, NodeGpus], pydantic.BeforeValidator(_nodes), pydantic.Field(min_length=1)]
    tasks: list[SimulatedTasks] = pydantic.Field(default_factory=list)
    trace: str | None = None
    random: RandomConfig | None = None
    policy: Policy = Policy()
    rivals: tuple[Planner, ...] = ("fifo", "backfill", "lpt", "one_gpu", "one_at_a_time")
    ablation: Planner | None = None
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    early_exit: bool = True
    batching: bool = True
    known_after: Share | None = None
    noise: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.0
    failures: FailureConfig = FailureConfig()

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("tasks", "trace", "random") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"given {' and '.join(given) or 'no tasks'}, expected one of tasks, trace and random")
        return self

    def policies(self) -> Mapping[str, Policy]:
        """By name, ours first."""
        names = dict.fromkeys([self.policy.plan, *self.rivals])
        return {name: self.policy.model_copy(update={"plan": name}) for name in names}
