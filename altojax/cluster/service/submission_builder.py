"""From a task's file to what the queue stores: checked as far as that is cheap, with paths that hold anywhere."""

import hashlib
import json
import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pydantic

from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.task_estimates.remaining_samples import TrialStanding, expected_samples
from altojax.config.search.configurations import configurations
from altojax.config.search.space import Positive
from altojax.config.tune_config import BaseSpec, TaskConfig, TuneConfig
from jaxlm.data.chat.template_setting import template_file
from jaxlm.data.config import DataConfig, DataSource, Sources
from jaxrun.config.config import StrictModel, dump_config_json
from jaxrun.files.home import from_home

if TYPE_CHECKING:
    from altojax.run.prepare import PreparedRun


class QueueSection(StrictModel):
    """The `queue` section of a task that is submitted.

    Attributes:
        gpus: How many GPUs the task can use; the queue chooses one of them, and may change it later.
        tenant: In whose name; null is the tenant that the queue knows you by, else your user name.
    """

    gpus: list[Positive] = pydantic.Field(default=[1], min_length=1)
    tenant: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None

    foreign_names: ClassVar[dict[str, str]] = {"num_gpus": "gpus", "devices": "gpus", "user": "tenant"}


class SubmitConfig(TuneConfig):
    """A task for the queue: the config of a run, and how the queue is to treat it.

    Attributes:
        queue: GPU counts and tenant.
    """

    queue: QueueSection = QueueSection()


def absolute(config: TuneConfig) -> TuneConfig:
    """Returns the run's config with absolute paths; what is not there may be a hub id and stays as it is."""

    def model(spec: BaseSpec | None) -> BaseSpec | None:
        return spec and spec.model_copy(update={"model_name_or_path": _there(spec.model_name_or_path)})

    def sources(given: Sources | DataSource | None) -> Any:
        if isinstance(given, list):
            return [sources(one) for one in given]
        if isinstance(given, DataSource):
            return given.model_copy(update={"path": _there(given.path)})
        return given and _there(given)

    def data(given: DataConfig) -> DataConfig:
        paths = {key: sources(getattr(given, key)) for key in ("train", "validation", "test")}
        if template := template_file(given.chat_template):
            paths["chat_template"] = _there(template)
        return given.model_copy(update={key: path for key, path in paths.items() if path is not None})

    def task_of(task: TaskConfig) -> TaskConfig:
        own: dict[str, Any] = {} if task.model is None else {"model": model(task.model)}
        if isinstance(task.init_adapter, str):
            own["init_adapter"] = _there(task.init_adapter)
        return task.model_copy(update={"data": data(task.data), **own})

    tasks = [task_of(task) for task in config.tasks]
    return _run(config, output_dir=os.path.realpath(config.output_dir), model=model(config.model), tasks=tasks)


def submission_of(config: SubmitConfig) -> Submission:
    """Checks all that a run would stop at and that can be known without a weight or a device.

    Raises:
        UserError: Anything wrong with models, data, target modules or search spaces.
    """
    from altojax.cluster.task_estimates.speed_profile import workloads_of, workloads_to_json
    from altojax.run.prepare import prepare

    if config.select_by == "score":
        config.metric.check_code()
    run = absolute(config)
    prepared = prepare(for_any_device(run))
    return Submission(
        dump_config_json(run),
        run.output_dir,
        tuple(task.name for task in run.tasks),
        tuple(sorted(set(config.queue.gpus))),
        sum(len(base.trials) for base in prepared.bases),
        expected_of(run, prepared),
        workloads_to_json(workloads_of(run, prepared)),
        _key(run, prepared) if len(prepared.bases) == 1 else "",
    )


def expected_of(config: TuneConfig, prepared: "PreparedRun") -> float:
    """Returns the samples that the trials of a prepared run are expected to train on."""
    standings: dict[str, list[TrialStanding]] = {}
    for base in prepared.bases:
        for trial in base.trials:
            standings.setdefault(trial.task, []).append(TrialStanding(trial.stream.total_samples, trial.schedule))
    return expected_samples(standings, config.early_exit)


def _key(config: TuneConfig, prepared: "PreparedRun") -> str:
    """Names all that tasks in one run must have in common for each to be trained as it would be alone."""
    if config.report_to:  # trackers show a run as it is, which would be the shared one
        return ""
    if any(task.init_adapter is not None for task in config.tasks):  # which tasks that are renamed do not name
        return ""
    (base,) = prepared.bases
    if base.searches:  # what is proposed is decided as the run goes, which a list of configurations cannot
        return ""
    for task in config.tasks:  # one run of several tasks has these listed, and so could not draw others for those alike
        if configurations(config, task) != [trial.config for trial in base.trials if trial.task == task.name]:
            return ""
    run = config.model_dump(mode="json", exclude={"output_dir", "model", "search", "tasks", "report_to"})
    return _digest(run, base.objective, base.spec.model_dump(mode="json"), repr(base.config))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _run(config: TuneConfig, **update: Any) -> TuneConfig:
    """Returns a config as that of a run alone, with some keys replaced by values that are known to be right."""
    values = {name: getattr(config, name) for name in TuneConfig.model_fields} | update
    given = {name for name in values if name in config.model_fields_set}
    return TuneConfig.model_construct(given, **values)


def for_any_device(config: TuneConfig) -> TuneConfig:
    """Asks for kernels that run anywhere: where the task will run is not known yet."""

    def model(spec: BaseSpec | None) -> BaseSpec | None:
        return spec and spec.model_copy(update={"kernels": "auto"})

    tasks = [task.model_copy(update={"model": model(task.model)}) for task in config.tasks]
    return _run(config, model=model(config.model), tasks=tasks)


def _there(path: str) -> str:
    found = from_home(path)
    return str(found.absolute()) if found.exists() else path
