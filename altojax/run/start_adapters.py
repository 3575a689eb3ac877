"""What the trials of a task start from, and how much of their configurations that decides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.start_adapter import StartAdapter, shape_of
from altojax.adapters.target_modules import Modules
from altojax.adapters.target_parameters import search_targets
from altojax.config.tune_config import BaseSpec, TaskConfig
from altojax.run.trial import SHAPE, Trial, TrialStart
from jaxlm.families.config import ModelConfig
from jaxlm.files.weights import read_forms
from jaxlm.quantised.formats import names_of, pack_of
from jaxrun.process.errors import UserError


@dataclass(frozen=True)
class TaskStart:
    """What a task's trials start from.

    Attributes:
        task: The task; what its search space does not say of an adapter's shape is the start adapter's.
        start: What they start from, None where that is random.
        spec: Of an adapter in a folder.
        notes: Lines for the user.
    """

    task: TaskConfig
    start: TrialStart | None = None
    spec: AdapterSpec | None = None
    notes: Sequence[str] = field(default=())

    def check(self, trial: Trial) -> None:
        """Refuses a trial of another shape than that of the adapter that it would start from.

        Raises:
            UserError: It has another rank, scale or target modules; the line names the key.
        """
        if self.spec is None:
            return
        spec, one = self.spec, trial.config
        given: dict[str, tuple[Any, Any]] = {
            "lora_rank": (one.lora_rank, spec.rank),
            "use_rslora": (one.use_rslora, spec.use_rslora),
            "lora_alpha": (one.alpha, spec.alpha),
            "target_modules": (trial.modules, spec.modules),
        }
        for key, (wanted, has) in given.items():
            if wanted != has:
                shown = _names(spec.modules) if key == "target_modules" else str(has)
                raise UserError(
                    f"task '{self.task.name}': search.{key}: {getattr(one, key)}, but the adapter of init_adapter has "
                    f"{shown}, expected that, or none: it is taken from the adapter"
                )


def start_of(task: TaskConfig, spec: BaseSpec, model: ModelConfig, trials: Sequence[Trial]) -> TaskStart:
    """Returns what the trials of a task start from.

    Args:
        task: The task.
        spec: Its base, as the config has it.
        model: Likewise, as its files have it.
        trials: Of the tasks before it, that for which it waits among them, as the largest that they may be.

    Raises:
        UserError: There is no such adapter, not for this model, or the task's search space says what is the adapter's.
    """
    if isinstance(task.init_adapter, str):
        return _of_folder(task, task.init_adapter, spec, model)
    if task.waits_for is not None:
        return _of_task(task, task.waits_for, model, [one for one in trials if one.task == task.waits_for])
    return TaskStart(task)


def _of_folder(task: TaskConfig, folder: str, base: BaseSpec, model: ModelConfig) -> TaskStart:
    try:
        found = StartAdapter.read(folder, model)
    except UserError as error:
        raise UserError(f"task '{task.name}': init_adapter: {error}") from error
    spec = found.spec
    notes = [f"starts from {folder}: rank {spec.rank}, alpha {spec.alpha:g}{_rslora(spec)}, {_names(spec.modules)}"]
    name = base.model_name_or_path
    if found.named_otherwise(name):
        notes.append(f"{folder} says that it was trained on {spec.base_model_name}, not {name}, which its shapes fit")
    form = names_of(read_forms(name, pack_of(base.quantize), weights=not base.random_init))
    if spec.base_quantization not in ("", form or "none"):
        used = f"is in {form}" if form else "is not quantised"
        notes.append(f"{folder} says that it was trained on a base {spec.trained_on}; this one {used}")
    start = TrialStart(found.digest, folder=folder, adapter=found.adapter)
    return TaskStart(_shaped(task, shape_of(spec, model)), start, spec, notes)


def _of_task(task: TaskConfig, other: str, model: ModelConfig, trials: Sequence[Trial]) -> TaskStart:
    listed = task.search.configurations or ()
    given = next((key for key in SHAPE for one in (task.search, *listed) if key in _given(one)), None)
    if given is not None:
        raise UserError(
            f"task '{task.name}': search.{given}: given, but the best of '{other}' decides it, expected none: "
            "rank, alpha, use_rslora and targets are that adapter's"
        )
    modules: Modules = {}
    for trial in trials:
        for key, layers in trial.modules.items():
            modules[key] = tuple(sorted({*modules.get(key, ()), *layers}))
    rank = max(trial.config.lora_rank for trial in trials)
    shape: dict[str, Any] = {"lora_rank": rank, "lora_alpha": 2.0 * rank, "use_rslora": False}
    shape |= search_targets(modules, model)
    note = f"starts from the best of {other}, for which it waits: rank, alpha and target modules are that adapter's"
    return TaskStart(_shaped(task, shape), TrialStart.best_of(other), None, [note])


def _shaped(task: TaskConfig, shape: dict[str, Any]) -> TaskConfig:
    """Returns a task whose own search space says the shape of its adapters, where it did not."""
    own = {key: value for key, value in shape.items() if key not in _given(task.search)}
    return task.model_copy(update={"search": task.search.model_copy(update=own)})


def _given(space: Any) -> set[str]:
    return {name for name in space.model_fields_set if getattr(space, name) is not None}


def _names(modules: Modules) -> str:
    return ", ".join(key.rpartition(".")[2] for key in modules)


def _rslora(spec: AdapterSpec) -> str:
    return " (rsLoRA)" if spec.use_rslora else ""
