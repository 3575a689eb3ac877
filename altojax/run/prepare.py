"""From a config to models, rows and trials. Every mistake in the input shows here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, cached_property, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from altojax.adapters.target_modules import Modules
from altojax.adapters.target_parameters import match
from altojax.config.objectives import ObjectiveName
from altojax.config.search.configurations import configurations, refines
from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import BaseSpec, TaskConfig, TuneConfig, model_of, objective_of, rules_of, stage_of
from altojax.device.batch import Stream, rows_here
from altojax.device.objectives.by_name import OBJECTIVES
from altojax.device.slots import empty_snapshot
from altojax.device.step import StaticPlan
from altojax.early_exit.curve import average_name
from altojax.early_exit.metric import comparable_loss, metric_names
from altojax.early_exit.milestones import rung_steps, steps_between
from altojax.early_exit.rules import Rules
from altojax.estimates.memory_model import base_of
from altojax.run.loop.questions import choose_questions
from altojax.run.start_adapters import TaskStart, start_of
from altojax.run.tasks.rows import TaskData, read_rows
from altojax.run.tasks.search import TaskSearch, with_milestones
from altojax.run.trial import Trial
from jaxlm.data.batching.row_layout import RowGeometry
from jaxlm.data.chat.chat_templates import with_template
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Projection, adaptable
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import read_forms, read_model_config
from jaxlm.quantised.formats import Forms, Keep, names_of, pack_of
from jaxrun.process.errors import UserError
from pallas_kernels.api import IMPLEMENTATIONS, choose

CPU_SLOTS, DEVICE_SLOTS = 8, 32
"""Slots where the config names none: two cores are busy with few rows, an accelerator wants many."""
MOST_STEP_ROWS, MOST_EVALUATIONS = 2**20, 100_000
"""Rows of an optimizer step, and evaluations, of a trial."""


@dataclass(frozen=True)
class PreparedBase:
    """One base model and all that shares it: tasks of one objective.

    Attributes:
        spec: What the user asked for.
        config: Its shapes.
        tokenizers: Its tokenizer as each task uses it, with the chat template that the task names.
        tasks: Names of its tasks.
        trials: Their trials. One that is proposed while others run takes the place of that which stood for it.
        searches: Of the tasks whose searches propose trials, by name.
        texts: Tokens of every text, by task.
        most_texts: Of a row that comes packed.
        targets: Targets among training tokens, as a share, and a quarter more, of the task that has most.
        averages: Windows of the running averages that each slot carries.
        objective: What trials minimize.
    """

    spec: BaseSpec
    config: ModelConfig
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    tasks: tuple[str, ...]
    trials: list[Trial]
    texts: tuple[tuple[int, ...], ...]
    most_texts: int
    targets: float
    searches: dict[str, TaskSearch] = field(default_factory=dict)
    averages: tuple[float, ...] = ()
    objective: ObjectiveName = "sft"

    @cached_property
    def rows(self) -> RowGeometry:
        """The rows of its batches on the default device, which whoever only submits a task does not take."""
        return rows_here(self.texts, self.most_texts)

    @cached_property
    def forms(self) -> Forms:
        """The forms of its matrices that are packed.

        Raises:
            UserError: A matrix that the form asked for cannot hold.
        """
        spec = self.spec
        return read_forms(spec.model_name_or_path, pack_of(spec.quantize), weights=not spec.random_init)

    @cached_property
    def form(self) -> str:
        """What the form of its matrices is called, ``none`` where its files are quantised and `quantize` undoes it."""
        spec = self.spec
        if spec.quantize != "none":
            return names_of(self.forms)
        released = read_forms(spec.model_name_or_path, Keep.RELEASED, weights=not spec.random_init)
        return "none" if released else ""

    @property
    def at_largest(self) -> list[Trial]:
        """Its trials, those that are proposed while others run as the largest that they may be."""
        return [self.searches[one.task].largest if one.proposed else one for one in self.trials]

    @property
    def accumulates(self) -> bool:
        """Whether any trial accumulates gradients."""
        return any(trial.accumulates for trial in self.at_largest)

    def sites_of(self, trial: Trial) -> dict[str, Projection]:
        """Returns the projections that a trial adapts."""
        known = self.projections()
        return {key: known[key] for key in trial.modules}

    def projections(self) -> dict[str, Projection]:
        """Projections that any trial adapts."""
        wanted = {key for trial in self.at_largest for key in trial.modules}
        return {key: one for key, one in adaptable(self.config).items() if key in wanted}


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run works on.

    Attributes:
        bases: The base models, in the order in which they train.
        data: Rows by task.
        day: The date that chat templates were given when they wrote the rows.
    """

    bases: tuple[PreparedBase, ...]
    data: Mapping[str, TaskData]
    day: date

    def abstract(self, named: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
        """Returns trees of zeros shaped like every state and best adapter that a checkpoint names.

        Args:
            named: Folders, by kind and trial.
        """
        like: dict[str, dict[str, Any]] = {"state": {}, "best": {}}
        for base in self.bases:
            for trial in base.trials:
                name = trial.full_name
                if any(name in kind for kind in named.values()):
                    kinds: dict[str, Any] = {"accumulates": trial.accumulates, "averages": len(base.averages)}
                    snapshot = empty_snapshot(base.sites_of(trial), trial.config.lora_rank, **kinds)
                    like["state"][name], like["best"][name] = snapshot, snapshot["adapters"]
        return like


def prepare(config: TuneConfig, day: date | None = None) -> PreparedRun:
    """Reads configs, tokenizers and data, and makes the trials. Writes nothing, loads no weights.

    Args:
        config: The run.
        day: What chat templates take for today; None is today.

    Raises:
        UserError: Anything wrong with models, data, target modules or search spaces.
    """
    day = day or date.today()
    groups: dict[tuple[BaseSpec, ObjectiveName, int], list[TaskConfig]] = {}
    for task in sorted(config.in_order, key=lambda one: stage_of(config, one)):
        key = model_of(config, task), objective_of(config, task), stage_of(config, task)
        groups.setdefault(key, []).append(task)
    for objective in dict.fromkeys(objective for _, objective, _ in groups):
        _check_needs(config, objective)
    data: dict[str, TaskData] = {}
    examples: dict[str, tuple[Sequence[Example], Sequence[Example]]] = {}
    bases: list[PreparedBase] = []
    first = 0
    for (spec, objective, _), tasks in groups.items():
        if spec.kernels != "auto":  # which would take a device, of which whoever only submits a task has no need
            kernels_of(spec)
        model = read_model_config(spec.model_name_or_path, weights=not spec.random_init)
        tokenizer = load_tokenizer(spec.model_name_or_path, trust_remote_code=spec.trust_remote_code)
        tokenizers = {task.name: with_template(tokenizer, task.data.chat_template) for task in tasks}
        for task in tasks:
            data[task.name], examples[task.name] = read_rows(config, task, tokenizer, model, day)
        trials: list[Trial] = []
        searches: dict[str, TaskSearch] = {}
        for task in tasks:
            largest = [one for base in bases for one in base.at_largest]
            largest += [searches[one.task].largest if one.proposed else one for one in trials]
            start = start_of(task, spec, model, largest)
            found, search, notes = _trials(config, start, data[task.name], model, first + len(trials))
            trials += found
            searches |= {task.name: search} if search else {}
            if config.select_by != "loss":
                encoder = Encoder.of(task.data.model_copy(update={"train_on": "completion"}), tokenizer, day)
                longest = min(task.data.max_length, model.max_position)
                kinds: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "ends": data[task.name].ends}
                questions = choose_questions(config, task.name, found, *examples[task.name], encoder, longest, **kinds)
                data[task.name] = replace(data[task.name], questions=questions, select_by=config.select_by)
                notes.append(f"{config.select_by} is of {questions.summary(len(examples[task.name][1]))}")
            data[task.name] = replace(data[task.name], notes=(*data[task.name].notes, *notes))
        names = tuple(task.name for task in tasks)
        rows = [data[name].rows for name in names]
        texts = tuple(tuple(len(row.tokens) for row in own) for own in rows)
        most = max(len(row.begins) for own in rows for row in own)
        targets = max(data[name].targets for name in names)
        base = PreparedBase(spec, model, tokenizers, names, trials, texts, most, targets, searches)
        bases.append(replace(base, averages=config.average_windows, objective=objective))
        first += len(trials)
    return PreparedRun(tuple(bases), data, day)


def plan_of(config: TuneConfig, base: PreparedBase, slots: int, kernels: str | None) -> StaticPlan:
    """Returns the static settings of a run of a base with so many slots, and an implementation of adapter products."""
    return StaticPlan(
        slots=slots,
        rank=max(trial.config.lora_rank for trial in base.at_largest),
        projections=base.projections(),
        rows=base.rows,
        accumulates=base.accumulates,
        drops=any(trial.config.lora_dropout > 0 for trial in base.at_largest),
        kernels=kernels,
        objective=OBJECTIVES[base.objective],
        averages=base.averages,
        optimizer_state=config.optimizer_state,
    )


def _check_needs(config: TuneConfig, objective: ObjectiveName) -> None:
    """Refuses early-exit rules that read what trials of an objective do not measure.

    Raises:
        UserError: One does.
    """
    averages, asked = len(config.average_windows), config.adapters_asked
    measured = {average_name(window) for window in range(averages)}
    if objective == "dpo":
        for average in [False, True][: 1 + bool(averages)]:
            tie = comparable_loss("preference", average=average)
            measured |= {*metric_names("preference", average=average), *([] if tie is None else [tie])}
    for adapter in asked if config.select_by != "loss" else ():
        measured |= set(metric_names(config.select_by, average=adapter is not None))
    for need, rule in rules_of(config, objective).lacking(measured).items():
        raise UserError(f"early_exit.{rule} needs '{need}', expected rules of the losses, which are what a run records")


def kernels_of(spec: BaseSpec) -> tuple[str | None, ...]:
    """The implementations of the adapter product that a run may take: that of its config, or else by seconds.

    Returns:
        Names; None is the fastest fused one that runs here.

    Raises:
        UserError: The one that the config names cannot run on this machine.
    """
    if spec.kernels == "auto":
        return ("xla",) if choose()[0] == "xla" else (None, "xla")
    if reasons := IMPLEMENTATIONS[spec.kernels].device():
        raise UserError(f"model.kernels: {spec.kernels} cannot run here: {'; '.join(reasons)}; expected auto or xla")
    return (spec.kernels,)


def _trials(
    config: TuneConfig, started: TaskStart, data: TaskData, model: ModelConfig, first: int
) -> tuple[list[Trial], TaskSearch | None, list[str]]:
    """Makes the trials of a task, what proposes some of them later, and lines about them."""
    task, notes = started.task, list(started.notes)
    lengths = [len(row.tokens) for row in data.train]
    sizes = max(lengths), sum(lengths) / len(lengths)
    matched = cache(partial(match, config=model))

    def trial(index: int, name: str, one: TrialConfig) -> Trial:
        targets, parameters = one.target_modules, one.target_parameters or ()
        if parameters and one.lora_dropout:
            raise UserError(f"lora_dropout: given {one.lora_dropout:g} with target_parameters, expected 0, as in PEFT")
        adapted = matched(targets if isinstance(targets, str) else tuple(targets), tuple(parameters))
        made = replace(_trial(config, task, name, one, data, adapted, sizes, index), start=started.start)
        started.check(made)
        return made

    found = configurations(
        config,
        task,
        alike=lambda one: trial(0, "", one).identity(),
        tell=notes.append,
        parameters=base_of(model, 1).total,
    )
    width = len(str(len(found) - 1))
    trials = [trial(first + i, f"trial-{i:0{width}d}", one) for i, one in enumerate(found)]
    if refines(config, task):
        search = TaskSearch.of(config, task, trial, found, base_of(model, 1).total)
        trials = search.begun(trials)
        return trials, search, [*notes, *_about_rungs(config.early_exit, trials, [one.rungs for one in trials])]
    rungs = rung_steps(config.early_exit, [one.schedule for one in trials])
    notes += _about_rungs(config.early_exit, trials, rungs)
    return (
        [with_milestones(one, steps, config.early_exit) for one, steps in zip(trials, rungs, strict=True)],
        None,
        notes,
    )


def _about_rungs(rules: Rules, trials: Sequence[Trial], rungs: Sequence[Sequence[int]]) -> list[str]:
    """Says where trials are not compared when the rules would."""
    if len(trials) < 2 or not rules.rungs:
        return []
    ready = "warmed up" if rules.evaluations == 1 else "been evaluated twice and warmed up"
    compared = [(one, steps) for one, steps in zip(trials, rungs, strict=True) if steps[0] < one.stream.total_steps]
    if not compared:
        return [f"early_exit compares no trials: none has {ready} before its end"]
    one, steps = max(compared, key=lambda pair: pair[0].stream.total_steps)
    asked = rules.rungs[0] * one.stream.total_steps if rules.rungs[0] < 1 else rules.rungs[0]
    if steps[0] < asked + 1:
        return []
    at, wanted = (100 * step / one.stream.total_steps for step in (steps[0], asked))
    when = f"at {at:.0f} % of their schedules, not {wanted:.0f} %"
    return [f"early_exit first compares trials {when}: by then all have {ready}"]


def _check_length(where: str, stream: Stream, every_steps: float) -> None:
    """Refuses schedules of which a list is made that memory cannot hold: of a step's rows, or of evaluations.

    Raises:
        UserError: It is one.
    """
    rows = stream.samples_after(1)
    if rows > MOST_STEP_ROWS:
        raise UserError(
            f"{where}: an optimizer step of {rows:,} samples, expected at most {MOST_STEP_ROWS:,} "
            "(batch_size x gradient_accumulation_steps)"
        )
    evaluations = stream.total_steps / max(every_steps, 1.0)
    if evaluations > MOST_EVALUATIONS:
        raise UserError(
            f"{where}: {evaluations:,.0f} evaluations, expected at most {MOST_EVALUATIONS:,}: a larger eval_samples"
        )


def _trial(
    config: TuneConfig,
    task: TaskConfig,
    name: str,
    one: TrialConfig,
    data: TaskData,
    modules: Modules,
    sizes: tuple[int, float],
    index: int,
) -> Trial:
    objective = objective_of(config, task)
    kind = OBJECTIVES[objective]
    samples = one.train_samples or max(1, round(one.num_train_epochs * (len(data.train) // kind.group)))
    stream = Stream(data.train, config.seed, samples, one.batch_size, one.gradient_accumulation_steps, kind)
    if objective == "dpo" and one.loss_type == "kto" and one.batch_size < 2:
        raise UserError(
            f"task '{task.name}': batch_size is 1 beside loss_type: kto, expected at least 2: the KL divergence is a "
            "mean over a micro-batch"
        )
    every = steps_between(config.eval_samples, samples, one.batch_size * one.gradient_accumulation_steps)
    _check_length(f"task '{task.name}'", stream, every)
    seed = config.seed if one.seed is None else one.seed
    longest, mean = sizes
    kinds: dict[str, Any] = {"every_steps": every, "row_tokens": mean, "objective": objective}
    return Trial(index, task.name, name, one, modules, stream, seed, longest, **kinds)
