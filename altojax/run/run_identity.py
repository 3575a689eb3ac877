"""The identity of a run: every resolved input that decides its results. The rest may change, and trials may be added.

A run that resumes finds its trials by their identity: in the order in which it began them, under the names that it gave
them, and evaluated and compared where that was fixed. Added ones come after them.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import jax.numpy as jnp

from altojax.config.search.configurations import axes_of, refines
from altojax.config.search.space import Draw
from altojax.config.tune_config import BaseSpec, TaskConfig, TuneConfig, model_of, objective_of
from altojax.run.prepare import PreparedRun
from altojax.run.trial import Trial, TrialStart
from jaxlm.models.computation import compute_dtype
from jaxrun.config.config import config_diff
from jaxrun.config.strict_yaml import dump_yaml
from jaxrun.store.opening import data_differences, data_identity

ROUNDED = ("slots", "mesh", "memory_budget", "kernels", "remat", "scan_layers")
"""Keys that may change from call to call, after which losses are the same up to rounding."""
FREE = ("checkpoint_samples", "keep_adapters", "report_to")
"""Keys that may change from call to call, after which losses are the same to the bit."""
_OF_MODEL = ("kernels", "remat", "scan_layers")


def identity_of(config: TuneConfig, prepared: PreparedRun) -> dict[str, Any]:
    """Returns the identity of a run as plain data: a folder holds one run, however its config is written.

    Not part of it are output_dir, and what `ROUNDED` and `FREE` name.
    """
    forms = {task: base.form for base in prepared.bases for task in base.tasks}
    trials: dict[str, list[dict[str, Any]]] = {}
    starts: dict[str, dict[str, str]] = {}
    for base in prepared.bases:
        for trial in base.trials:
            said = facts_of(trial)
            trials.setdefault(trial.task, []).append({"essence": said["essence"], "config": said["config"]})
            if trial.start is not None:
                starts[trial.task] = {"init_adapter": trial.start.essence}
    whole = config.model_dump(mode="json", include={"seed", "early_exit", "eval_samples", "result"})
    if config.select_by != "loss":
        whole |= config.model_dump(mode="json", include={"select_by", "metric_budget"})
        whole |= {"metric": config.metric.model_dump(mode="json", exclude={"timeout_s"}, exclude_none=True)}
    if config.optimizer_state != "float32":
        whole |= {"optimizer_state": config.optimizer_state}
    average = {"windows": list(config.average_windows), "evaluate": config.average.evaluate}
    return whole | {
        "average": average,
        "tasks": {
            task.name: {
                "model": _model(model_of(config, task), forms[task.name]),
                "data": data_identity(task.data, prepared.data[task.name].digest),
                "trials": trials[task.name],
                **starts.get(task.name, {}),
                **({} if objective_of(config, task) == "sft" else {"objective": objective_of(config, task)}),
                **({"axes": _axes(config, task)} if refines(config, task) else {}),
            }
            for task in config.tasks
        },
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the differences by which a run of identity `new` cannot resume one of `old`, a few words each."""
    tasks: list[str] = []
    for name in dict.fromkeys([*old["tasks"], *new["tasks"]]):
        if name not in old["tasks"] or name not in new["tasks"]:
            tasks.append(f"tasks.{name}")
            continue
        before, after = old["tasks"][name], new["tasks"][name]
        tasks += [f"tasks.{name}.model.{key}" for key in config_diff(before["model"], after["model"])]
        data = [f"tasks.{name}.{key}" for key in data_differences(before["data"], after["data"])]
        searches = [one.get("axes", {}) | {"trials": len(one["trials"])} for one in (before, after)]
        if "axes" in before or "axes" in after:  # what is proposed depends on all of them
            data += [f"tasks.{name}.search.{key}" for key in config_diff(*searches)]
        if before.get("objective") != after.get("objective"):
            data.append(f"tasks.{name}.objective")
        if before.get("init_adapter") != after.get("init_adapter"):
            data.append(f"tasks.{name}.init_adapter")
        tasks += data or _lost(f"tasks.{name}.search", before["trials"], after["trials"])
        best = TrialStart.best_of(name).essence
        started = [one for one in new["tasks"] if new["tasks"][one].get("init_adapter") == best]
        if len(after["trials"]) > len(before["trials"]) and started:
            tasks.append(f"tasks.{name}.search (more trials, where {started[0]} starts from its best)")
    rest = [{key: value for key, value in one.items() if key != "tasks"} for one in (old, new)]
    return [*config_diff(*rest), *tasks]


def changes(old: TuneConfig, new: TuneConfig) -> str | None:
    """Returns a line about keys that may change and have, from the last call of a run to this; None where none has."""
    before, after = (one.model_dump(mode="json", exclude_none=True) for one in (old, new))
    told, rounds = [], False
    for key in config_diff(before, after):
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        name = last if last in _OF_MODEL and ".model." in f".{key}" else first
        if name in ROUNDED or name in FREE:
            place = key if name in _OF_MODEL else name
            told.append(f"{place} {_shown(before, place)} → {_shown(after, place)}")
            rounds = rounds or name in ROUNDED
    if not told:
        return None
    same = "losses are the same up to rounding" if rounds else "losses are the same"
    return f"resumes with other settings, {', '.join(dict.fromkeys(told))}; {same}"


def facts_of(trial: Trial) -> dict[str, Any]:
    """Returns a trial's facts for the journal."""
    more: dict[str, Any] = {}
    if trial.proposed:
        more["around"] = None if trial.around is None else list(trial.around)
    if trial.start is not None:
        more["start"] = str(trial.start)
    if trial.objective == "dpo":
        more["select_by"] = "preference"
    return {
        "task": trial.task,
        "trial": trial.name,
        "essence": sha256(repr(trial.identity()).encode()).hexdigest()[:16],
        "config": trial.settings,
        "total_steps": trial.stream.total_steps,
        "total_samples": trial.stream.total_samples,
        "schedule": asdict(trial.schedule),
        "eval_steps": list(trial.eval_steps),
        "rungs": list(trial.rungs),
        "decided": trial.decided,
        **more,
    }


def as_begun(prepared: PreparedRun, begun: Sequence[Mapping[str, Any]]) -> PreparedRun:
    """Returns a run with the trials that it has begun as they were, and the others after them.

    Args:
        prepared: As the config says.
        begun: Facts of the trials in the journal, in their order; nothing of a new run.
    """
    bases, index = [], 0
    for base in prepared.bases:
        trials: list[Trial] = []
        for task in base.tasks:
            waiting: dict[str, list[Trial]] = {}
            for trial in base.trials:
                if trial.task == task:
                    waiting.setdefault(facts_of(trial)["essence"], []).append(trial)
            for facts in (one for one in begun if one["task"] == task and "around" not in one):
                trial = waiting[facts["essence"]].pop(0)
                eval_steps, rungs = tuple(facts["eval_steps"]), tuple(facts["rungs"])
                trials.append(replace(trial, name=facts["trial"], eval_steps=eval_steps, rungs=rungs))
            names = [trial.name for trial in trials if trial.task == task]
            added = sorted((one for alike in waiting.values() for one in alike), key=lambda one: one.index)
            trials += [_named_after(names, trial, number) for number, trial in enumerate(added)]
        bases.append(replace(base, trials=[replace(one, index=index + i) for i, one in enumerate(trials)]))
        index += len(trials)
    return replace(prepared, bases=tuple(bases))


def given_to(config: TuneConfig, prepared: PreparedRun) -> Sequence[str]:
    """Returns a run's config, models and rows as lines: equal on all processes, whatever their folders are."""
    lines = dump_yaml(config.model_dump(mode="json", exclude={"output_dir", "report_to"})).splitlines()
    models = {f"model {base.spec.model_name_or_path}": repr(base.config) for base in prepared.bases}
    rows = {f"rows of task '{task}'": data.digest for task, data in prepared.data.items()}
    return [*lines, *(f"{name} ({sha256(text.encode()).hexdigest()[:12]})" for name, text in (models | rows).items())]


def templates_of(config: TuneConfig, prepared: PreparedRun) -> dict[str, str]:
    """The chat templates that the config names, by task: files may change or go after training."""
    tokenizers = {task: one for base in prepared.bases for task, one in base.tokenizers.items()}
    named = [task.name for task in config.tasks if isinstance(task.data.chat_template, str)]
    return {name: str(tokenizers[name].chat_template) for name in named}


def _shown(tree: Any, key: str) -> str:
    """Returns the value of a dotted key of plain data, as a config says it."""
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree.get(part)
    return json.dumps(tree).replace('"', "")


def _model(spec: BaseSpec, form: str) -> dict[str, Any]:
    said = spec.model_dump(mode="json", include={"model_name_or_path", "random_init"})
    if spec.quantize is not None and (spec.quantize, form) != ("none", ""):  # where null is none
        said |= {"quantize": spec.quantize}
    return said | {"dtype": jnp.dtype(compute_dtype(spec)).name}


def _axes(config: TuneConfig, task: TaskConfig) -> dict[str, Any]:
    axes = axes_of(config, task)
    return {name: one.model_dump() if isinstance(one, Draw) else one for name, one in axes.items()}


def _named_after(names: Sequence[str], trial: Trial, number: int) -> Trial:
    if not names:
        return trial
    digits = len(names[0].rpartition("-")[2])
    return replace(trial, name=f"trial-{len(names) + number:0{digits}d}")


def _lost(where: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the keys of the config that took trials away, in words; none where it has them all."""
    lost = Counter(one["essence"] for one in before) - Counter(one["essence"] for one in after)
    if not lost:
        return []
    gone = next(one["config"] for one in before if one["essence"] in lost)
    if len(after) < len(before):
        varied = [key for key in gone if any(one["config"].get(key) != gone[key] for one in before)]
        which = ", ".join(f"{key} {gone[key]}" for key in varied)
        return [f"{where} (without {lost.total()} of its trials, such as that of {which or 'the same config'})"]
    kept = [{key: one["config"].get(key) for key in gone} for one in after]  # other losses read other keys
    nearest = min(kept, key=lambda one: sum(one[key] != gone[key] for key in gone))
    return [f"{where}.{key}" for key in gone if nearest[key] != gone[key]]
