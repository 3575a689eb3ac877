"""Resolves ``MODEL`` and ``adapter=`` of the command line: a base, alone or as a run used it, and adapters."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from altojax.adapters.peft_config import QUANTIZATION, AdapterSpec, read_ends, read_fields
from altojax.config.tune_config import BaseSpec, TaskConfig, TuneConfig, model_of
from jaxlm.data.config import DataConfig
from jaxlm.data.prompting import Asking
from jaxlm.files.weights import read_forms
from jaxlm.models.spec import Quantize
from jaxlm.quantised.formats import PACKS, Forms, Keep, names_of
from jaxrun.config.config import check_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError, nearest
from jaxrun.process.notices import tell_once
from jaxrun.store.journal import Journal
from jaxrun.store.opening import day_of
from jaxrun.store.run_folder import JOURNAL_NAME

_OF_TRAINING = ("early_exit", "metric", "select_by", "metric_budget", "result", "average", "report_to")


@dataclass(frozen=True)
class ModelSource:
    """A base model and the adapters to use it with.

    Attributes:
        model: The base.
        seed: Of the base's weights, where they are random.
        adapters: Name to show -> folder.
        task: The task, where MODEL is a run.
        data: The task's data, where MODEL is a run.
        day: What chat templates take for today: the day on which the run first opened, else today.
        ends: Tokens that end what the adapters have learnt to write.
        asking: How the task's rows ask, where MODEL is a run or its one adapter lies in one.
        written: How the task's rows are written as tokens, likewise; of an adapter that lies elsewhere the chat
            template beside it.
    """

    model: BaseSpec
    seed: int
    adapters: dict[str, Path]
    task: str | None = None
    data: DataConfig | None = None
    day: date = dataclasses.field(default_factory=date.today)
    ends: tuple[int, ...] = ()
    asking: Asking | None = None
    written: DataConfig | None = None


def find_source(
    model: str,
    *,
    adapters: Sequence[str] | None = None,
    task: str | None = None,
    trial: str | None = None,
    dtype: str | None = None,
    quantize: Quantize | None = None,
) -> ModelSource:
    """Finds a base and adapters.

    Args:
        model: A run's folder, a Hugging Face folder, a .gguf file or a hub id.
        adapters: Adapter folders; None takes a run's own, and none where MODEL is no run.
        task: Which of a run's tasks; may be left out where there is one.
        trial: Which of a run's trials; None is the best.
        dtype: Of the base; None is the run's, or auto.
        quantize: The form of its matrices; None is the run's, or that on which the adapters were trained.

    Raises:
        UserError: No such adapter, task or trial; the run has not finished; a task or trial where there is no run; or
            adapters that were trained on different forms.
    """
    source = _found(model, adapters, task, trial, dtype)
    if quantize is None and source.task is None:
        quantize = _trained_on(source)
    if quantize is None:
        return source
    return dataclasses.replace(source, model=source.model.model_copy(update={"quantize": quantize}))


def tell_of_other_forms(adapters: Mapping[str, AdapterSpec], forms: Forms) -> None:
    """Says which adapters were trained on another form of the base than they are used on.

    Args:
        adapters: By the name to show.
        forms: Of the base.
    """
    for name, spec in adapters.items():
        if spec.base_quantization not in ("", names_of(forms) or "none"):
            used = names_of(forms) or "not quantised"
            tell_once(f"{name}: was trained on a base {spec.trained_on}, and is used on one that is {used}")


def _found(
    model: str, adapters: Sequence[str] | None, task: str | None, trial: str | None, dtype: str | None
) -> ModelSource:
    named = {} if adapters is None else _named(adapters)
    if not (Path(model) / JOURNAL_NAME).is_file():
        if task is not None or trial is not None:
            given = "task" if task is not None else "trial"
            raise UserError(f"{model}: no run here, of which {given}= could name one, expected the output_dir of a run")
        if not model:
            raise UserError("model: given '', expected a run, a model's folder, a .gguf file or a hub id")
        source = ModelSource(_with_dtype(BaseSpec(model_name_or_path=model), dtype), 0, named, ends=_ends(named))
        return source if len(named) != 1 else _as_taught(source, *named.values())
    with Journal.read(model) as journal:
        config = _trained_by(journal)
        with journal.interpreted():
            templates = dict(journal.get("templates", {}))
            trials = [(one["task"], one["trial"]) for one in journal.get("trials", [])]
            asking = {name: Asking(**one) for name, one in journal.get("asking", {}).items()}
    chosen = _task(model, config, task)
    one_task = next(one for one in config.tasks if one.name == chosen)
    data = (
        one_task.data.model_copy(update={"chat_template": templates[chosen]}) if chosen in templates else one_task.data
    )
    if adapters is None:
        named = _of_run(model, chosen, trial, [name for of_task, name in trials if of_task == chosen])
    spec = _with_dtype(model_of(config, one_task), dtype)
    day, asks = day_of(Path(model)), _asking(asking, one_task)
    return ModelSource(spec, config.seed, named, chosen, data, day, _ends(named), asks, data)


def _trained_on(source: ModelSource) -> Quantize | None:
    """Returns the form of the base that adapters say they were trained on, where it is made as a base is loaded.

    Raises:
        UserError: They say different ones.
    """
    said = {name: str(read_fields(folder).get(QUANTIZATION) or "") for name, folder in source.adapters.items()}
    forms = sorted(set(said.values()))
    if len(forms) > 1:
        each = ", ".join(f"{name} on {form or 'one that is not quantised'}" for name, form in said.items())
        raise UserError(f"adapter: trained on different bases ({each}), expected quantize= to say the one to use")
    name = source.model.model_name_or_path
    if forms == ["none"]:
        return "none"
    if not forms or not forms[0] or names_of(read_forms(name, Keep.RELEASED)) == forms[0]:
        return None
    if names_of(read_forms(name, Keep.ALL)) == forms[0]:
        return "keep"
    return next((one for one in PACKS if one == forms[0]), None)


def _trained_by(journal: Journal) -> TuneConfig:
    """Returns a run's config but for what only its training asks for, which may be of packages that are not here."""
    tree = parse_yaml(journal.config_text, str(journal.run_dir))
    if isinstance(tree, dict):
        tree = {key: value for key, value in tree.items() if key not in _OF_TRAINING}
    return check_config(TuneConfig, tree, str(journal.run_dir))


def _as_taught(source: ModelSource, adapter: Path) -> ModelSource:
    """Adds how an adapter's training rows were written, as far as the journal beside it says."""
    run, task = adapter.resolve().parent.parent, adapter.resolve().parent.name
    if (run / JOURNAL_NAME).is_file():
        with contextlib.suppress(UserError):  # a journal that says nothing of it
            taught = find_source(str(run), adapters=[], task=task)
            return dataclasses.replace(source, day=taught.day, asking=taught.asking, written=taught.written)
    template = adapter / "chat_template.jinja"
    if not template.is_file():
        return source
    return dataclasses.replace(source, written=DataConfig(train=str(adapter), chat_template=str(template)))


def _asking(noted: Mapping[str, Asking], task: TaskConfig) -> Asking:
    """Returns how the rows of a task ask; a run that did not note it asks as its config says, or for completions."""
    if task.name in noted:
        return noted[task.name]
    return Asking() if task.data.format == "auto" else Asking(task.data.format)


def _ends(adapters: Mapping[str, Path]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(token for folder in adapters.values() for token in read_ends(folder)))


def _with_dtype(spec: BaseSpec, dtype: str | None) -> BaseSpec:
    return spec if dtype is None else spec.model_copy(update={"dtype": dtype})


def _named(folders: Sequence[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for given in folders:
        path = from_home(given)
        if not path.is_dir():
            beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"adapter: no folder {given}{nearest(path.name, beside)}, expected one with an adapter")
        named[str(path)] = path
    return named


def _task(run: str, config: TuneConfig, task: str | None) -> str:
    names = [one.name for one in config.tasks]
    if task is None:
        if len(names) > 1:
            raise UserError(f"{run}: has the tasks {', '.join(names)}, expected task= to name one")
        return names[0]
    if task not in names:
        raise UserError(f"{run}: has no task '{task}'{nearest(task, names)}, expected one of {', '.join(names)}")
    return task


def _of_run(run: str, task: str, trial: str | None, trials: Sequence[str]) -> dict[str, Path]:
    name = trial or "best"
    if name != "best" and name not in trials:
        hint = nearest(name, [*trials, "best"])
        raise UserError(f"{run}: task '{task}' has no trial '{name}'{hint}, expected best or one of its {len(trials)}")
    folder = Path(run) / task / name
    if not folder.is_dir():
        why = "a trial without a finite loss has none, and with keep_adapters: best only the best has one"
        raise UserError(f"{folder}: no adapter; run tune to its end first ({why})")
    return {f"{task}/{name}": folder}
