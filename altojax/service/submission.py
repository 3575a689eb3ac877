"""From a task's file to what the queue stores of it: checked as far as that is cheap, with paths that hold anywhere."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pydantic

from altojax.capacity import base_of
from altojax.search import BaseSpec, Positive, TuneConfig, model_of
from altojax.service.expectation import Standing, expected_samples
from backbone.data import DataConfig
from harness.config import StrictModel, dump_config

if TYPE_CHECKING:
    from altojax.setup import Base, Prepared


class QueueSection(StrictModel):
    """The `queue` section of a task that is submitted.

    Attributes:
        gpus: How many GPUs the task can use; the queue chooses one of them, and may change it later.
        tenant: In whose name; null is the tenant that the queue knows you by, else your user name.
    """

    gpus: Annotated[list[Positive], pydantic.Field(min_length=1)] = [1]
    tenant: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None

    foreign_names: ClassVar[dict[str, str]] = {"num_gpus": "gpus", "devices": "gpus", "user": "tenant"}


class SubmitConfig(TuneConfig):
    """A task for the queue: the config of a run, and how the queue is to treat it.

    Attributes:
        queue: GPU counts and tenant.
    """

    queue: QueueSection = QueueSection()


@pydantic.dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be trained, as far as its speed and its length depend on it.

    Attributes:
        samples: Samples that all trials together are expected to train on.
        trials: Trials.
        batch: Mean samples of a trial's optimizer step.
        length: Tokens of the longest row, as rows are padded.
        rank: Largest rank.
        parameters: Of the base; with several of the largest.
        base: Names the base, its dtype and how it is computed.
        slots: Trials that train at once, where the config says so.
        key: Tasks with equal keys may share one executor; empty where a task shares with none.
    """

    samples: float
    trials: int
    batch: float
    length: int
    rank: int
    parameters: int
    base: str
    slots: int | None
    key: str


@pydantic.dataclasses.dataclass(frozen=True)
class Submission:
    """What a user submits.

    Attributes:
        config: The whole `TuneConfig` as YAML, its paths absolute.
        output_dir: The run's folder.
        reads: Paths that the task reads, by the key that names them.
        tasks: Names of its tasks.
        gpus: GPU counts that it can use, ascending.
        workload: What is to be trained.
    """

    config: str
    output_dir: str
    reads: dict[str, str]
    tasks: tuple[str, ...]
    gpus: tuple[int, ...]
    workload: Workload

    def to_json(self) -> str:
        """Returns it as one line of JSON."""
        return _SUBMISSION.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Submission":
        """The inverse of `to_json`.

        Raises:
            pydantic.ValidationError: The text is none.
        """
        return _SUBMISSION.validate_json(text)


_SUBMISSION: pydantic.TypeAdapter[Submission] = pydantic.TypeAdapter(Submission)


def absolute(config: TuneConfig) -> TuneConfig:
    """Returns the run's config with absolute paths; what is not there may be a hub id and stays as it is."""

    def model(spec: BaseSpec | None) -> BaseSpec | None:
        return spec and spec.model_copy(update={"model_name_or_path": _there(spec.model_name_or_path)})

    def data(given: DataConfig) -> DataConfig:
        validation = None if given.validation is None else _there(given.validation)
        return given.model_copy(update={"train": _there(given.train), "validation": validation})

    tasks = [task.model_copy(update={"data": data(task.data), "model": model(task.model)}) for task in config.tasks]
    return _run(config, output_dir=str(Path(config.output_dir).absolute()), model=model(config.model), tasks=tasks)


def submission_of(config: SubmitConfig) -> Submission:
    """Checks all that a run would stop at and that can be known without a weight or a device.

    Raises:
        UserError: Anything wrong with models, data, target modules or search spaces.
    """
    from altojax.setup import prepare

    run = absolute(config)
    prepared = prepare(_for_any_device(run))
    reads: dict[str, str] = {}
    for number, task in enumerate(run.tasks):
        reads[f"tasks.{number}.data.train"] = task.data.train
        if task.data.validation is not None:
            reads[f"tasks.{number}.data.validation"] = task.data.validation
        reads[f"tasks.{number}.model" if task.model else "model"] = model_of(run, task).model_name_or_path
    return Submission(
        dump_config(run),
        run.output_dir,
        {key: path for key, path in reads.items() if Path(path).exists()},
        tuple(task.name for task in run.tasks),
        tuple(sorted(set(config.queue.gpus))),
        workload_of(run, prepared),
    )


def workload_of(config: TuneConfig, prepared: "Prepared") -> Workload:
    """Returns what a prepared run is to train."""
    trials = [trial for base in prepared.bases for trial in base.trials]
    standings: dict[str, list[Standing]] = {}
    for trial in trials:
        one = Standing(trial.stream.total_samples, trial.stream.total_steps, warmup=trial.config.warmup_ratio)
        standings.setdefault(trial.task, []).append(one)
    largest = max(prepared.bases, key=_parameters)
    steps = sum(trial.stream.total_steps for trial in trials)
    return Workload(
        samples=expected_samples(standings, config.early_exit),
        trials=len(trials),
        batch=sum(trial.stream.total_samples for trial in trials) / steps,
        length=max(trial.length for trial in trials),
        rank=max(trial.config.lora_rank for trial in trials),
        parameters=_parameters(largest),
        base=_digest(largest.spec.model_dump(mode="json"), repr(largest.config)),
        slots=config.slots,
        key=_key(config, prepared) if len(prepared.bases) == 1 else "",
    )


def _key(config: TuneConfig, prepared: "Prepared") -> str:
    """Names all that tasks in one run must have in common for each to be what it would be alone."""
    if config.report_to:  # trackers show a run as it is, which would be the shared one
        return ""
    (base,) = prepared.bases
    run = config.model_dump(mode="json", exclude={"output_dir", "model", "search", "tasks", "report_to"})
    return _digest(run, base.spec.model_dump(mode="json"), repr(base.config), base.lengths, base.packed)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _parameters(base: "Base") -> int:
    return base_of(base.config, weight_bytes=1).total


def _run(config: TuneConfig, **update: Any) -> TuneConfig:
    """Returns a config as that of a run alone, with some keys replaced by values that are known to be right."""
    return TuneConfig.model_construct(**{name: getattr(config, name) for name in TuneConfig.model_fields} | update)


def _for_any_device(config: TuneConfig) -> TuneConfig:
    """Asks for kernels that run anywhere: where the task will run is not known yet."""

    def model(spec: BaseSpec | None) -> BaseSpec | None:
        return spec and spec.model_copy(update={"kernels": "auto"})

    tasks = [task.model_copy(update={"model": model(task.model)}) for task in config.tasks]
    return _run(config, model=model(config.model), tasks=tasks)


def _there(path: str) -> str:
    found = Path(path).expanduser()
    return str(found.absolute()) if found.exists() else path
