"""The page of a report: facts first, then every task, then the run as a whole, then how to use what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altojax.early_exit.metric import by_score
from altojax.report.figures import COLOURS, brief, saved_share, settings, varied
from altojax.report.record_tables import HYPERPARAMETERS, plain
from altojax.report.run_record import RunRecord, TrialRecord
from altojax.report.worth import Worth, worth_of
from jaxrun.plots.pages import Badge, Table, render
from jaxrun.plots.pictures import Picture
from jaxrun.terminal.progress import duration
from jaxrun.terminal.sizes import counted


@dataclass(frozen=True)
class TaskSection:
    """The section of one task.

    Attributes:
        name: The task.
        sentence: How many trials it had, how they ended, which is the best, and what came of its test.
        worth: Conventional settings as against the best trial, one a row; no rows where nothing was chosen.
        noise: How far apart runs of one configuration are.
        pictures: Of the task.
        trials: One row a trial, the best first.
        reasons: Why trials were ended; no rows where none was.
    """

    name: str
    sentence: str
    worth: Table
    noise: str
    pictures: Sequence[Picture]
    trials: Table
    reasons: Table


def report_page(
    run_dir: Path,
    record: RunRecord,
    of_tasks: Mapping[str, Sequence[Picture]],
    of_run: Sequence[Picture],
    config_text: str,
) -> str:
    """Returns the whole page.

    Args:
        run_dir: The run's folder, as the reader may type it.
        record: Its record.
        of_tasks: Pictures of each task.
        of_run: Pictures of the run.
        config_text: Its config, as YAML.
    """
    return render(
        "altojax.report",
        "report.html.j2",
        title=f"altojax: {run_dir.name}",
        subtitle=f"{counted(len(record.trials), 'trial')}; the run is {record.state}.",
        run_dir=run_dir,
        results=_results(record),
        numbers=_numbers(record),
        tasks=[_task_section(record, task, of_tasks[task]) for task in record.tasks],
        run_pictures=of_run,
        machine=_machine(record.start),
        config_text=config_text,
    )


def _task_section(record: RunRecord, task: str, pictures: Sequence[Picture]) -> TaskSection:
    best = record.best_of(task)
    found = worth_of(record.of_task(task), best)
    reasons = [[trial.trial, trial.reason, trial.detail] for trial in record.of_task(task) if trial.detail]
    return TaskSection(
        name=task,
        sentence=_sentence(record, task, best),
        worth=_worth(found),
        noise="" if found is None else found.noise_sentence(),
        pictures=pictures,
        trials=_trials(record, task, best),
        reasons=Table(["trial", "ended as", "because"], reasons, sortable=False),
    )


def _numbers(record: RunRecord) -> dict[str, Any]:
    clock = record.clock
    counts = {status: sum(trial.status == status for trial in record.trials) for status in ("completed", "stopped")}
    facts: dict[str, Any] = {
        "trials": len(record.trials),
        "trained to the end": counts["completed"],
        "ended early": counts["stopped"],
        "samples saved": f"{100 * saved_share(list(record.trials)):.1f} %",
        "tokens trained on": sum(trial.tokens for trial in record.trials),
        "training steps": record.ticks,
    }
    if clock:
        facts["time"] = duration(clock["whole_s"])
        facts["of it training"] = duration(clock["training_s"])
        if clock.get("alone_s") is not None:
            ratio = f"{clock['alone_s'] / clock['whole_s']:.1f}× this run"
            facts[f"the same steps one trial at a time (estimate, {ratio})"] = duration(clock["alone_s"])
        facts["tokens a second"] = f"{clock['tokens_per_s']:,.0f}"
        if clock["metric_s"]:
            metric, share = record.trials[0].select_by.replace("_", " "), clock["metric_s"] / clock["whole_s"]
            facts[f"of it measuring {metric} ({100 * share:.0f} %)"] = duration(clock["metric_s"])
        if clock.get("padding") is not None:
            facts["padding, of all tokens computed in training"] = f"{100 * clock['padding']:.0f} %"
        if clock["devices"] > 1:
            facts["tokens that devices wait for the busiest"] = f"{100 * clock['imbalance']:.1f} %"
        facts["compilations"] = f"{clock['compiles']} ({duration(clock['compile_s'])})"
    if record.start.get("device"):
        facts["device"] = record.start["device"]
    return facts


def _results(record: RunRecord) -> Table:
    rows = []
    for task in record.tasks:
        best = record.best_of(task)
        base = record.base_loss.get(task) if best is None else best.base_loss
        loss = None if best is None else best.best_loss
        tested = record.held_out.get(task)
        tests: list[float | str | None] = [None] * 3 if record.held_out else []
        if tested is not None:
            tests = [tested.base_loss, tested.loss, _gain(tested.base_loss, tested.loss)]
        tuned = "" if best is None else settings(best, varied(record.of_task(task)))
        rows.append([task, base, loss, _gain(base, loss), *tests, None if best is None else best.trial, tuned])
    test = ["the base's test loss", "test loss", "lower by"] if record.held_out else []
    columns = ["task", "loss of the base", "best validation loss", "lower by", *test, "best trial", "its settings"]
    return Table(columns, rows, sortable=False)


def _gain(base: float | None, loss: float | None) -> str | None:
    return None if loss is None or base is None else f"{100 * (base - loss) / base:.1f} %"


def _sentence(record: RunRecord, task: str, best: TrialRecord | None) -> str:
    trials = record.of_task(task)
    fates: dict[str, int] = {}
    for trial in trials:
        fates[trial.fate] = fates.get(trial.fate, 0) + 1
    told = ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items(), key=lambda item: -item[1]))
    told += f"; from {trials[0].start}" if trials[0].start else ""
    if best is None or best.best is None:
        return f"{counted(len(trials), 'trial')} ({told}); none has a validation loss yet."
    tested = record.held_out.get(task)
    return (
        f"{counted(len(trials), 'trial')} ({told}). The best is {best.trial} with a validation loss of "
        f"{best.best_loss:.4f} at step {best.best.step} of {best.total_steps}."
        + ("" if best.metric is None else f" It was chosen by {best.metric_sentence()}; the loss decides ties.")
        + (
            ""
            if tested is None
            else f" On rows that nobody trained on or chose by, {tested.trial}: {tested.sentence()}."
        )
    )


def _worth(found: Worth | None) -> Table:
    columns = [
        "fixed setting",
        "measured on",
        "compared at",
        "its loss",
        "the best's",
        "lower by",
        "noise up to",
        "worth it?",
    ]
    rows = []
    for one in found.comparisons if found is not None else ():
        share = "the end" if one.share is None else f"{100 * one.share:.0f} % of the schedule"
        at = f"{share}, where it was ended ({one.ended})" if one.ended else share
        gain = None if one.gain is None else f"{100 * one.gain:.1f} %"
        noise = None if one.noise is None else one.noise.bound
        rows.append([one.setting, one.measured_on, at, one.loss, one.winner_loss, gain, noise, one.verdict()])
    return Table(columns, rows, sortable=False)


def _trials(record: RunRecord, task: str, best: TrialRecord | None) -> Table:
    every = dict(enumerate(record.of_task(task)))
    trials = [every[place] for place in by_score({place: trial.best_score for place, trial in every.items()})]
    varying = varied(trials)
    asked = any(trial.metric is not None for trial in trials)
    metric = [trials[0].select_by] if asked else []
    columns = ["trial", "ended", *metric, "best loss", "at step", "steps", "slot s", *varying]
    rows = []
    for trial in trials:
        point = trial.best
        values = [_value(trial, column) for column in varying]
        ended = Badge(trial.fate, COLOURS.get(trial.fate, ""))
        loss, step = (None, None) if point is None else (trial.best_loss, point.step)
        seconds = None if trial.slot_s is None else round(trial.slot_s, 1)
        share = [trial.metric] if asked else []
        rows.append([trial.trial, ended, *share, loss, step, trial.steps, seconds, *values])
    at_best = None if best is None else trials.index(best)
    return Table([column.replace("_", " ") for column in columns], rows, best=at_best)


def _machine(facts: Mapping[str, Any]) -> Table:
    rows = [[str(key).replace("_", " "), _flat(value)] for key, value in facts.items()]
    return Table(["what", "value"], rows, sortable=False)


def _flat(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(one)}" for key, one in value.items())
    return plain(value)


def _value(trial: TrialRecord, column: str) -> Any:
    return brief(trial.config.get(HYPERPARAMETERS[column]))
