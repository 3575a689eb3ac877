"""The config of a tuning run: tasks, each with base model, data and search space; and their trials."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic

from altojax.config import foreign_keys, grid
from altojax.config.duplicates import different, draw_different
from altojax.early_exit.rules import EarlyExit, Rules
from jaxlm.data import DataConfig
from jaxlm.devices.mesh import MeshSpec
from jaxlm.models.spec import ModelSpec
from jaxrun.config.config import StrictModel
from jaxrun.process.errors import UserError
from jaxrun.store.run_folder import JOURNAL_NAME, LOCK_NAME

Positive = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
TargetModules = str | Annotated[list[str], pydantic.Field(min_length=1)]
LONGEST_NAME = 100
"""Characters of a task's name: it names folders, of which others are named with more behind it."""
MOST_TRIALS = 100_000
"""Trials of a run."""
MOST_TASKS = 1_000
"""Tasks of a run."""
Schedule = Literal["constant", "linear", "cosine", "warmup_stable_decay"]


MAKES = ("config.yaml", "metrics.jsonl", "trials.csv", "report.html", "plots", "checkpoints",
         "tensorboard", "wandb", "trackio")  # fmt: skip
"""Names in a run's folder, beside its journal and a folder for each task."""


class BaseSpec(ModelSpec):
    """The frozen base.

    Attributes:
        kernels: Implementation of the adapter product (`pallas_kernels`); auto takes the fastest proven here.
    """

    kernels: Literal["auto", "mosaic_gpu", "triton", "xla"] = "auto"


class TrialConfig(StrictModel):
    """One LoRA configuration. Every field may be an axis of a search space.

    Attributes:
        lora_rank: Columns of A.
        lora_alpha: The adapter is scaled by alpha / rank; null is 2 · rank (ALTO).
        use_rslora: Scale by alpha / sqrt(rank) instead.
        lora_dropout: Share of the adapter's input features dropped in training.
        target_modules: ``all-linear``, a list of module names, or a regular expression over whole module paths.
        learning_rate: Its peak.
        lr_scheduler_type: Shape over the trial's own schedule.
        warmup_ratio: Share of the optimizer steps spent on linear warm-up.
        decay_ratio: Share of the steps spent decaying (warmup_stable_decay).
        min_lr_ratio: Where cosine and warmup_stable_decay end, as a share of the peak.
        weight_decay: Decoupled, on A and B.
        adam_beta1: Decay of the first moment.
        adam_beta2: Decay of the second moment.
        adam_epsilon: Added to the root of the second moment.
        max_grad_norm: Clips the norm of this adapter's gradient; 0 does not.
        batch_size: Rows of a micro-batch.
        gradient_accumulation_steps: Micro-batches of an optimizer step.
        num_train_epochs: Length of the schedule.
        train_samples: Length of the schedule in samples; wins over epochs.
        seed: Of the initial A and of dropout; null is the run's. The order of the data is the run's for every trial.
    """

    lora_rank: Positive = 16
    lora_alpha: Annotated[float, pydantic.Field(gt=0)] | None = None
    use_rslora: bool = False
    lora_dropout: Share = 0.0
    target_modules: TargetModules = "all-linear"
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 2e-4
    lr_scheduler_type: Schedule = "cosine"
    warmup_ratio: Share = 0.03
    decay_ratio: Share = 0.2
    min_lr_ratio: Share = 0.0
    weight_decay: NotNegative = 0.01
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Annotated[float, pydantic.Field(gt=0)] = 1e-8
    max_grad_norm: NotNegative = 1.0
    batch_size: Positive = 4
    gradient_accumulation_steps: Positive = 1
    num_train_epochs: Annotated[float, pydantic.Field(gt=0)] = 1.0
    train_samples: Positive | None = None
    seed: Annotated[int, pydantic.Field(ge=0)] | None = None

    foreign_names = foreign_keys.TRIAL
    foreign_values = foreign_keys.SCHEDULES

    @property
    def alpha(self) -> float:
        """`lora_alpha`, or twice the rank."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)


class Draw(StrictModel):
    """A range to draw from, for ``method: random``.

    Attributes:
        min: Smallest value.
        max: Largest value.
        log: Uniform in the logarithm.
    """

    min: float
    max: float
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max or (self.log and self.min <= 0):
            raise ValueError(f"given min={self.min:g}, max={self.max:g}, expected min <= max, and min > 0 with log")
        return self


def _some(kind: Any) -> Any:
    return Annotated[list[kind], pydantic.Field(min_length=1)]


def _axes() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, field in TrialConfig.model_fields.items():
        one: Any = field.annotation
        for constraint in field.metadata:
            one = Annotated[one, constraint]
        if name == "target_modules":
            kinds: Any = str | _some(str | _some(str)) | None
        else:
            number = one not in (bool,) and name not in ("lr_scheduler_type",)
            kinds = one | _some(one) | (Draw | None if number else None)
        fields[name] = (kinds, pydantic.Field(None, json_schema_extra={"default": field.default}))
    return fields


class SearchSpace(
    pydantic.create_model("Axes", __base__=StrictModel, __doc__=TrialConfig.__doc__, **_axes()),  # type: ignore[misc]
):
    """Values or axes for every field of a configuration: a list is an axis, ``{min, max, log}`` a range to draw from.

    Attributes:
        method: ``grid``, which null is, tries every combination; ``random`` draws `trials` of them, none twice.
        trials: How many to draw (random), or the most to take of a grid, which is then a random choice of it.
        configurations: Whole configurations to try as they are, on top of the values given here; then no axes are
            allowed.
    """

    method: Literal["grid", "random"] | None = None
    trials: Positive | None = None
    configurations: Annotated[list[TrialConfig], pydantic.Field(min_length=1)] | None = None

    foreign_names = foreign_keys.SEARCH
    foreign_values = foreign_keys.SCHEDULES


class TaskConfig(StrictModel):
    """One task: wants one good adapter.

    Attributes:
        name: Names its folder of results.
        data: Training and validation rows.
        search: Replaces, key by key, what the run's `search` says.
        model: The base, where it is not the run's.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    data: DataConfig
    search: SearchSpace = SearchSpace()
    model: BaseSpec | None = None


class TuneConfig(StrictModel):
    """A run of ``altojax tune``.

    Attributes:
        output_dir: The run's folder.
        seed: Orders data, draws configurations, starts adapters.
        model: The base of every task that does not name its own.
        search: The search space that tasks share.
        early_exit: The rules that end weak trials.
        tasks: At least one.
        slots: Trials that train at once; null is what fits, at most 8 on a CPU and 32 on each device elsewhere.
        mesh: How devices share the work; null is chosen from devices, trials and model. May change from call to call.
        memory_budget: Bytes of a device, or text such as ``40GiB``; null is what it has.
        eval_samples: Samples between a trial's evaluations; below 1 a share of its schedule.
        checkpoint_samples: Samples, over all trials, between checkpoints; below 1 a share of the whole run.
        share_rows: Lay texts of a trial's batch into one row where they fit, none of which sees another: less padding,
            in float32 the same losses up to rounding. Not with packing, nor with dropout, which is drawn by rows.
        keep_adapters: Write the adapters of all trials, or of the best of each task only.
        report_to: Any of tensorboard, wandb, trackio; metrics.jsonl is always written.
    """

    output_dir: str = pydantic.Field(min_length=1)
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    model: BaseSpec | None = None
    search: SearchSpace = SearchSpace()
    early_exit: EarlyExit = pydantic.Field(default_factory=Rules)
    tasks: Annotated[list[TaskConfig], pydantic.Field(min_length=1, max_length=MOST_TASKS)]
    slots: Positive | None = None
    mesh: MeshSpec | None = None
    memory_budget: int | str | None = None
    eval_samples: Annotated[float, pydantic.Field(gt=0)] = 0.05
    checkpoint_samples: Annotated[float, pydantic.Field(gt=0)] = 0.05
    share_rows: bool = False
    keep_adapters: Literal["all", "best"] = "all"
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    foreign_names = foreign_keys.RUN

    @pydantic.field_validator("memory_budget")
    @classmethod
    def _is_a_size(cls, given: int | str | None) -> int | str | None:
        parse_bytes(given)
        return given

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
    def _trials_can_be_listed(self) -> Self:
        counts = {task.name: _count(_merged(self.search, task.search)) for task in self.tasks}
        if (total := sum(counts.values())) > MOST_TRIALS:
            most = max(counts, key=lambda name: counts[name])
            of = "" if len(counts) == 1 else f", {grid.count_text(counts[most])} of them by task '{most}'"
            raise ValueError(
                f"search asks for {grid.count_text(total)} trials{of}, expected at most {MOST_TRIALS:,}: fewer values, "
                "or with search.trials a random choice"
            )
        return self


def model_of(config: TuneConfig, task: TaskConfig) -> BaseSpec:
    """Returns the task's base: its own or the run's."""
    model = task.model or config.model
    assert model is not None
    return model


def configurations(
    config: TuneConfig,
    task: TaskConfig,
    *,
    alike: Callable[[TrialConfig], Hashable] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> list[TrialConfig]:
    """Returns a task's configurations, no two alike: the same list for the same config.

    Args:
        config: The run.
        task: The task.
        alike: What two configurations have in common that come to one trial; None is all that they say.
        tell: Called with a line where there are fewer of them than were asked for.

    Raises:
        UserError: Axes are given along with whole configurations, a range in a grid, or a range that no trial may have.
    """
    given = _merged(config.search, task.search)
    method, trials = given.pop("method", "grid"), given.pop("trials", None)
    listed = given.pop("configurations", None)
    where = f"task '{task.name}': search"
    axes = {name: _choices(name, value) for name, value in given.items()}
    words = [int.from_bytes(task.name.encode()[i : i + 4], "little") for i in range(0, len(task.name), 4)]
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, *words])))
    key = alike or (lambda one: _said(one, config.seed))
    if listed is not None:
        varied = next((name for name, choices in axes.items() if isinstance(choices, Draw) or len(choices) > 1), None)
        if varied is not None:
            raise UserError(f"{where}.{varied}: an axis beside configurations, expected one value or none")
        fixed = {name: choices[0] for name, choices in axes.items() if isinstance(choices, list)}
        return different([TrialConfig(**{**fixed, **one.model_dump(exclude_unset=True)}) for one in listed], key, tell)
    if method == "random":
        if trials is None:
            raise UserError(f"{where}.trials: missing, expected how many configurations method random draws")
        for name, choices in axes.items():
            if isinstance(choices, Draw):
                _check_range(f"{where}.{name}", name, choices)
        endless = ({n: _draw(n, choices, random) for n, choices in axes.items()} for _ in itertools.count())
        found = draw_different((TrialConfig(**one) for one in endless), trials, key)
        if len(found) < trials:
            tell(f"search.trials: {trials} asked for, {len(found)} tried: there are no more different configurations")
        return found
    lists: dict[str, list[Any]] = {}
    for name, choices in axes.items():
        if isinstance(choices, Draw):
            raise UserError(f"{where}.{name}: a range, expected a list of values in a grid, or method: random")
        lists[name] = choices
    if trials is not None and grid.size(lists) > MOST_TRIALS:
        return grid.choose(lists, trials, lambda one: TrialConfig(**one), key, random)
    every = different([TrialConfig(**one) for one in grid.combinations(lists)], key, tell)
    if trials is not None and trials < len(every):
        every = [every[i] for i in sorted(random.choice(len(every), trials, replace=False))]
    return every


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


def _merged(shared: SearchSpace, own: SearchSpace) -> dict[str, Any]:
    return {**_given(shared), **_given(own)}


def _given(space: SearchSpace) -> dict[str, Any]:
    # In the order of the fields: model_fields_set is a set, whose order changes from process to process.
    given = {name: getattr(space, name) for name in type(space).model_fields if name in space.model_fields_set}
    return {name: value for name, value in given.items() if value is not None}


def _choices(name: str, value: Any) -> list[Any] | Draw:
    if isinstance(value, Draw):
        return value
    if name == "target_modules":
        nested = isinstance(value, list) and any(isinstance(one, list) or one == "all-linear" for one in value)
        return value if nested else [value]
    return value if isinstance(value, list) else [value]


def _count(space: Mapping[str, Any]) -> int:
    """Returns the most trials that a search space may come to."""
    listed, trials = space.get("configurations"), space.get("trials")
    if listed is not None:
        return len(listed)
    if space.get("method") == "random":
        return trials or 0
    axes = {name: _choices(name, value) for name, value in space.items() if name in TrialConfig.model_fields}
    size = grid.size({name: choices for name, choices in axes.items() if isinstance(choices, list)})
    return size if trials is None else min(size, trials)


def _said(one: TrialConfig, seed: int) -> Hashable:
    """Canonical text of a configuration."""
    said = {**dict(one), "lora_alpha": one.alpha, "seed": seed if one.seed is None else one.seed}
    if not isinstance(one.target_modules, str):
        said["target_modules"] = frozenset(one.target_modules)
    if one.train_samples is not None:
        del said["num_train_epochs"]
    return tuple(said.items())


def _check_range(where: str, name: str, given: Draw) -> None:
    for end in (given.min, given.max):
        one: dict[str, Any] = {name: round(end) if name in _WHOLE else end}
        try:
            TrialConfig(**one)
        except pydantic.ValidationError as error:
            raise UserError(f"{where}: given a range that reaches {end:g}: {error.errors()[0]['msg']}") from error


def _draw(name: str, choices: list[Any] | Draw, random: np.random.Generator) -> Any:
    if isinstance(choices, list):
        return choices[int(random.integers(len(choices)))]
    low, high = (math.log(choices.min), math.log(choices.max)) if choices.log else (choices.min, choices.max)
    value = low + (high - low) * float(random.random())
    value = math.exp(value) if choices.log else value
    return round(value) if name in _WHOLE else min(max(float(f"{value:.4g}"), choices.min), choices.max)


_WHOLE = ("lora_rank", "batch_size", "gradient_accumulation_steps", "train_samples", "seed")
