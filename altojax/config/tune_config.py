"""The config of a tuning run: tasks, each with base model, data and search space."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from altojax.config import foreign_keys
from altojax.config.metric_spec import MetricSpec
from altojax.config.objectives import ObjectiveName, is_unpaired, unread, why_unread
from altojax.config.search import grid
from altojax.config.search.space import NotNegative, Positive, SearchSpace, Size, given_in, merged, most_trials
from altojax.early_exit.curve import AVERAGE
from altojax.early_exit.rule import SelectBy
from altojax.early_exit.rules import EarlyExit, Rules
from jaxlm.data.config import DataConfig
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.models.spec import ModelSpec, Quantize
from jaxrun.config.config import Seed, StrictModel
from jaxrun.config.config_keys import Ours
from jaxrun.process.errors import nearest
from jaxrun.store.run_folder import JOURNAL_NAME, LOCK_NAME

WINDOW = 8.0
"""The window of the running average where the config names none (docs/measured/averages.md)."""
LONGEST_NAME = 100
"""Characters of a task's name: it names folders, of which others are named with more behind it."""
MOST_TRIALS = 100_000
"""Trials of a run."""
MOST_TASKS = 1_000
"""Tasks of a run."""
MAKES = ("config.yaml", "metrics.jsonl", "trials.csv", "report.html", "plots", "checkpoints", "reference",
         "tensorboard", "wandb", "trackio")  # fmt: skip
"""Names in a run's folder, beside its journal and a folder for each task."""


Result = Literal["best", "last", "average"]


class BaseSpec(ModelSpec):
    """The frozen base.

    Attributes:
        kernels: Implementation of the adapter product (`pallas_kernels`); auto takes what
            takes the run the fewest predicted seconds, compilations included.
        quantize: Pack matrices of projections as they are loaded: nf4 as bitsandbytes does, nf4_double with its scales
            packed, too, int8 with a scale for every output, int4 in groups of 128; keep leaves them as the files have
            them, GGUF too; none is dtype; null is keep for quantised Hugging Face folders and none for others
            (docs/how-to/quantized-base.md).
    """

    kernels: Literal["auto", "mosaic_gpu", "triton", "xla"] = "auto"
    quantize: Quantize | None = None

    foreign_names: ClassVar[dict[str, str | Ours]] = ModelSpec.foreign_names | {
        **dict.fromkeys(("load_in_4bit", "use_qlora", "qlora"), Ours("quantize", "nf4 is QLoRA's")),
        "load_in_8bit": Ours("quantize", "it takes int8"),
        "bnb_4bit_quant_type": "quantize",
        **dict.fromkeys(
            ("bnb_4bit_use_double_quant", "use_double_quant", "double_quantization"),
            Ours("quantize", "it takes nf4_double"),
        ),
        **dict.fromkeys(
            ("quantization", "quantization_bit", "quantization_config"),
            Ours("quantize", "it takes nf4, nf4_double, int8, int4 or keep"),
        ),
    }


class AverageSpec(StrictModel):
    """The running averages of a trial's adapter (docs/how-to/early-exit.md).

    Attributes:
        windows: η of each: an average is about the last 1 / (η + 1) of the steps so far. Rules, result and report read
            the first; null is [8] where a rule or the result needs one, and else none.
        evaluate: Measure them at rungs and at the end, or always: at every evaluation.
    """

    windows: Annotated[tuple[NotNegative, ...], pydantic.Field(strict=False, max_length=8)] | None = None
    evaluate: Literal["rungs", "always"] = "rungs"

    @pydantic.field_validator("windows")
    @classmethod
    def _each_once(cls, given: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if given is not None and len(set(given)) < len(given):
            raise ValueError(f"{list(given)} has a window twice, expected each once")
        return given


class BestOf(StrictModel):
    """The best adapter of another task of the run.

    Attributes:
        best_of: That task's name.
    """

    best_of: str


class TaskConfig(StrictModel):
    """One task: wants one good adapter.

    Attributes:
        name: Names its folder of results.
        data: Training and validation rows.
        search: Replaces, key by key, what the run's `search` says.
        model: The base, where it is not the run's.
        init_adapter: The adapter that its trials start from: a folder as PEFT writes it, or ``{best_of: NAME}``, the
            best of another task, which this one then waits for. lora_rank, lora_alpha, use_rslora and target_modules
            are that adapter's; null starts from none, A random and B zero.
        objective: What its trials minimize, where it is not the run's.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    data: DataConfig
    search: SearchSpace = SearchSpace()
    model: BaseSpec | None = None
    init_adapter: Annotated[str, pydantic.Field(min_length=1)] | BestOf | None = None
    objective: ObjectiveName | None = None

    foreign_names = foreign_keys.TASK
    foreign_values = foreign_keys.OBJECTIVES

    @property
    def waits_for(self) -> str | None:
        """The task whose best adapter its trials start from, None where there is none."""
        return self.init_adapter.best_of if isinstance(self.init_adapter, BestOf) else None


class TuneConfig(StrictModel):
    """A run of ``altojax tune``.

    Attributes:
        output_dir: The run's folder.
        seed: Orders data, draws configurations, starts adapters.
        model: The base of every task that does not name its own.
        objective: What trials minimize: sft, the cross-entropy of completions; or dpo, a loss of preference pairs,
            which `search.loss_type` names (docs/how-to/preference.md).
        search: The search space that tasks share.
        average: The running averages of each trial's adapter.
        select_by: What decides rungs and the best trial: the validation loss, or of preference pairs how often the
            chosen answer is preferred; accuracy, where completions are labels: how often the right one is the likeliest
            of them all; exact_match: how often the answer that is generated is the reference; or score: what code of
            yours says of answers. The loss then decides between trials whose metrics are too close to tell apart
            (docs/how-to/metrics.md).
        metric: How answers are generated and compared.
        metric_budget: Share of the training that measuring the metric may cost, by prediction; it decides how many
            validation rows are asked.
        early_exit: The rules that end weak trials; a preset that ranks by averages is another where there are none.
        result: The adapter of a trial that is its result: the best that was measured, averages included; the last; or
            the average at its last evaluation.
        tasks: At least one.
        slots: Trials that train at once; null is what fits, at most 8 on a CPU and 32 on each device elsewhere.
        mesh: How devices share the work; null is chosen from devices, trials and model. May change from call to call.
        memory_budget: Bytes of a device, or text such as ``40GiB``; null is what it has.
        optimizer_state: How slots keep AdamW's moments: float32, bfloat16 or int8, which save 4 and 6 of the 16 bytes
            that a slot takes for each parameter, at some cost of the loss (docs/how-to/tune.md).
        eval_samples: Samples between a trial's evaluations; below 1 a share of its schedule.
        checkpoint_samples: Samples, over all trials, between checkpoints; below 1 a share of the whole run.
        keep_adapters: Write the adapters of all trials, or of the best of each task only.
        report_to: Any of tensorboard, wandb, trackio; metrics.jsonl is always written.
    """

    output_dir: str = pydantic.Field(min_length=1)
    seed: Seed = 0
    model: BaseSpec | None = None
    objective: ObjectiveName = "sft"
    search: SearchSpace = SearchSpace()
    average: AverageSpec = AverageSpec()
    select_by: Literal["loss", "accuracy", "exact_match", "score"] = "loss"
    metric: MetricSpec = MetricSpec()
    metric_budget: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.1
    early_exit: EarlyExit = pydantic.Field(default_factory=Rules, validate_default=True)
    result: Result = "best"
    tasks: Annotated[list[TaskConfig], pydantic.Field(min_length=1, max_length=MOST_TASKS)]
    slots: Positive | None = None
    mesh: MeshSpec | None = None
    memory_budget: int | str | None = None
    optimizer_state: Literal["float32", "bfloat16", "int8"] = "float32"
    eval_samples: Size = 0.05
    checkpoint_samples: Size = 0.05
    keep_adapters: Literal["all", "best"] = "all"
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    foreign_names = foreign_keys.RUN
    foreign_values = foreign_keys.OBJECTIVES

    @pydantic.field_validator("memory_budget")
    @classmethod
    def _is_a_size(cls, given: int | str | None) -> int | str | None:
        parse_bytes(given)
        return given

    @pydantic.field_validator("early_exit", mode="after")
    @classmethod
    def _for_what_is_measured(cls, given: Rules, info: pydantic.ValidationInfo) -> Rules:
        average = info.data.get("average")
        rules = given.for_curves(set()) if average is not None and average.windows == () else given
        return rules.selecting_by(info.data.get("select_by", "loss"))

    @property
    def reads(self) -> dict[str, str]:
        """What the run reads: paths and hub ids, by the keys that name them."""
        read: dict[str, str] = {}
        for number, task in enumerate(self.tasks):
            read |= {f"tasks.{number}.data.{key}": path for key, path in task.data.paths.items()}
            read[f"tasks.{number}.model" if task.model else "model"] = model_of(self, task).model_name_or_path
            if isinstance(task.init_adapter, str):
                read[f"tasks.{number}.init_adapter"] = task.init_adapter
        return read

    @property
    def in_order(self) -> list[TaskConfig]:
        """The tasks, each after the one that it waits for, else as they are listed."""
        known = {task.name: task for task in self.tasks}
        return sorted(self.tasks, key=lambda task: len(_waited_for(task, known)))

    @property
    def measures_averages(self) -> bool:
        """Whether running averages are measured at every evaluation, not at rungs and ends alone."""
        return self.average.evaluate == "always" or self.result == "average"

    @property
    def adapters_asked(self) -> tuple[int | None, ...]:
        """Which adapters of a trial the metric is measured of: None its own, 0 its first running average.

        That is those that may be its result, and what it is compared by.
        """
        rule = self.early_exit.comparison
        by = None if rule is None or rule.select_by == "loss" else rule.rank_by
        own = self.result != "average" or by in ("best", "last")
        average = bool(self.average_windows) and (self.result != "last" or by == "average")
        return (*([None] if own else []), *([0] if average else []))

    @property
    def average_windows(self) -> tuple[float, ...]:
        """Windows of the running averages that each slot carries."""
        if self.average.windows is not None:
            return self.average.windows
        needed = self.result == "average" or AVERAGE in self.early_exit.lacking(set())
        return (WINDOW,) if needed else ()

    @pydantic.model_validator(mode="after")
    def _has_the_averages_that_it_reads(self) -> Self:
        if self.average_windows:
            return self
        readers = {"result": self.result == "average"}
        needs = self.early_exit.lacking(set()).items()
        readers |= {f"early_exit.{rule}.rank_by": need == AVERAGE for need, rule in needs}
        if reader := next((name for name, reads in readers.items() if reads), None):
            raise ValueError(f"{reader} is average, but average.windows is empty, expected a window such as 8")
        return self

    @pydantic.model_validator(mode="after")
    def _measures_what_it_selects_by(self) -> Self:
        rule = self.early_exit.comparison
        if rule is not None and rule.select_by not in ("loss", "preference", self.select_by):
            raise ValueError(
                f"early_exit.{rule.name}.select_by is {rule.select_by}, but select_by is {self.select_by}, expected "
                f"{rule.select_by} for both: a run measures what it selects by"
            )
        self.metric.check(self.select_by)
        return self

    @pydantic.model_validator(mode="after")
    def _tasks_are_complete(self) -> Self:
        names = [task.name for task in self.tasks]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"two tasks are named '{twice}', expected names of their own")
        own = {*MAKES, JOURNAL_NAME, f"{JOURNAL_NAME}-wal", f"{JOURNAL_NAME}-shm", LOCK_NAME}
        taken = next((name for name in names if name.lower() in own), None)
        if taken is not None:
            raise ValueError(f"a task is named '{taken}', which a run makes in its folder, expected another name")
        for task in self.tasks:
            if task.model is None and self.model is None:
                raise ValueError(f"task '{task.name}' has no model, expected one there or for the whole run")
        return self

    @pydantic.model_validator(mode="after")
    def _tasks_wait_for_others_of_their_base(self) -> Self:
        known = {task.name: task for task in self.tasks}
        for number, task in enumerate(self.tasks):
            where, other = f"tasks.{number}.init_adapter", task.waits_for
            if other is None:
                continue
            if other not in known:
                raise ValueError(f"{where}: no task '{other}'{nearest(other, known)}, expected another of the run")
            chain = [task.name, *_waited_for(task, known)]
            if chain[-1] in chain[:-1]:
                raise ValueError(f"{where}: {' waits for '.join(chain)}, expected a task that does not wait")
            if model_of(self, task) != model_of(self, known[other]):
                raise ValueError(f"{where}: '{other}' has another model section, expected that of '{task.name}'")
        return self

    @pydantic.model_validator(mode="after")
    def _objectives_read_their_keys(self) -> Self:
        spaces = [(objective_of(self, task), merged(self.search, task.search)) for task in self.tasks]
        if key := unread(spaces, given_in(self.search)):
            raise ValueError(f"search.{key} is given, but no task's objective reads it{why_unread(key, spaces)}")
        for task, (objective, space) in zip(self.tasks, spaces, strict=True):
            self._check_rules(task.name, objective)
            if key := unread([(objective, space)], given_in(task.search)):
                why = why_unread(key, [(objective, space)])
                raise ValueError(f"task '{task.name}': search.{key} is given, but its objective does not read it{why}")
            if objective == "dpo":
                _check_pairs(task, self.select_by, space)
        return self

    def _check_rules(self, task: str, objective: ObjectiveName) -> None:
        rule = rules_of(self, objective).comparison
        if objective != "dpo" and rule is not None and rule.select_by == "preference":
            raise ValueError(
                f"early_exit.{rule.name}.select_by is preference, but task '{task}' has no pairs, expected loss, or "
                "objective: dpo"
            )

    @pydantic.model_validator(mode="after")
    def _trials_can_be_listed(self) -> Self:
        counts = {task.name: most_trials(merged(self.search, task.search)) for task in self.tasks}
        if (total := sum(counts.values())) > MOST_TRIALS:
            most = max(counts, key=lambda name: counts[name])
            of = "" if len(counts) == 1 else f", {grid.count_text(counts[most])} of them by task '{most}'"
            raise ValueError(
                f"search asks for {grid.count_text(total)} trials{of}, expected at most {MOST_TRIALS:,}: fewer values, "
                "or with search.trials a random choice"
            )
        return self


def objective_of(config: TuneConfig, task: TaskConfig) -> ObjectiveName:
    """Returns the task's objective: its own or the run's."""
    return task.objective or config.objective


def rules_of(config: TuneConfig, objective: ObjectiveName) -> Rules:
    """Returns the early-exit rules for tasks of an objective: those of pairs go by accuracy, unless they were told."""
    return config.early_exit.selecting_by("preference") if objective == "dpo" else config.early_exit


def model_of(config: TuneConfig, task: TaskConfig) -> BaseSpec:
    """Returns the task's base: its own or the run's."""
    model = task.model or config.model
    assert model is not None
    return model


def stage_of(config: TuneConfig, task: TaskConfig) -> int:
    """Returns after how many others the trials of a task train, those that share one base and one objective at once.

    A task of another objective than that for which it waits is after it, and one of pairs always: its reference is
    computed before any of its trials begins.
    """
    known = {one.name: one for one in config.tasks}
    kinds = [objective_of(config, one) for one in (task, *(known[name] for name in _waited_for(task, known)))]
    return sum(kind == "dpo" or kind != before for kind, before in itertools.pairwise(kinds))


def _waited_for(task: TaskConfig, known: Mapping[str, TaskConfig]) -> list[str]:
    """Returns the tasks that end before one begins, the nearest first; up to the first that comes again."""
    names = [task.name]
    while (other := known[names[-1]].waits_for) is not None and other in known:
        names.append(other)
        if other in names[:-1]:
            break
    return names[1:]


def _check_pairs(task: TaskConfig, select_by: SelectBy, space: Mapping[str, Any]) -> None:
    where = f"task '{task.name}': objective is dpo, but"
    try:
        is_unpaired(space)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None
    if task.data.packing:
        raise ValueError(f"{where} data.packing is true, expected false: the rows of a pair stay together")
    if task.data.train_on != "completion":
        raise ValueError(f"{where} data.train_on is {task.data.train_on}, expected completion: answers are compared")
    if select_by != "loss":
        raise ValueError(f"{where} select_by is {select_by}, expected loss: pairs have no questions")


def parse_bytes(given: int | str | None) -> int | None:
    """Returns a number of bytes, at least one, from ``40GiB``, ``16GB``, ``512MiB`` or a plain number.

    Raises:
        ValueError: It is none of these.
    """
    if given is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([KMGT]i?)?B?\s*", str(given))
    unit = "" if match is None else match.group(2) or ""
    power = " KMGT".index(unit[0]) if unit else 0
    count = 0.0 if match is None else float(match.group(1)) * (1024 if unit.endswith("i") else 1000) ** power
    if not 1 <= count < 2**63:
        raise ValueError("expected bytes such as 40GiB or 500MB")
    return int(count)
