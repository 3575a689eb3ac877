"""The page of reproduce_alto.py: what all arms took, what they found, and where the time went."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grid_numbers import Alone, geometric_mean
from grid_times import NAMES, times_csv, times_picture
from matplotlib.figure import Figure

from altojax.report.run_record import RunRecord, read_record
from jaxrun.files.atomic import write_atomic
from jaxrun.plots.markdown import table
from jaxrun.plots.plots import bars, save
from jaxrun.store.journal import Journal
from jaxrun.store.run_folder import JOURNAL_NAME

PIECES = {
    "fixed": "training: steps whatever their tokens",
    "text": "training: text",
    "padding": "training: padding",
    "evaluation": "evaluation",
    "compile": "compilation",
    "exchange": "slots filled and emptied",
    "checkpoint": "checkpoints",
    "rest": "start, exports, report",
}

BASES = {"peft": "PEFT", "crowd": "PEFT's processes", "solo": "ours alone"}
"""Arms that others are compared with, and how a table's heading calls them."""
RUNS = ("full", "early", "eager", "paper", "halving", "topk")
"""Arms that are one run of the whole grid."""


@dataclass(frozen=True)
class Arm:
    """What an arm took for one task.

    Attributes:
        seconds: Wall-clock time, extrapolated for arms that train one at a time or in several processes.
        samples: Samples trained on, likewise.
        tokens_per_s: Tokens of text a second of training.
        busy: Share of the time in which the GPU computed, or None.
        record: The run, for arms that trained.
    """

    seconds: float
    samples: int
    tokens_per_s: float | None
    busy: float | None
    record: RunRecord | None = None


def write_page(out: Path, tasks: Sequence[str]) -> str:
    """Writes page.md and its pictures from whatever is there; returns the page."""
    arms = {task: read_arms(out, task) for task in tasks}
    arms = {task: of_task for task, of_task in arms.items() if of_task}
    parts = [
        speed_table(arms),
        crowd_table(out, arms),
        quality_table(out, arms),
        pieces_table(arms),
        parity_table(out, arms),
        repeat_table(arms),
        *regret_tables(_read(out / "regret.json", [])),
    ]
    page = "\n\n".join(part for part in parts if part)
    for name, figure in pictures(arms).items():
        save(figure, out / f"{name}.png")
    write_atomic(out / "alto-times.csv", times_csv(seconds_of(arms)))
    write_atomic(out / "page.md", page + "\n")
    return page


def read_arms(out: Path, task: str) -> dict[str, Arm]:
    """Returns every arm that has finished on a task, in the order of `NAMES`."""
    arms: dict[str, Arm] = {}
    grid: list[tuple[int, int, int]] = []  # batch size, steps and samples of every configuration
    for name in (*RUNS, "solo"):
        told, record = _read(out / f"{name}-{task}.json", None), _record(out / f"{name}-{task}")
        if told is None or record is None or not record.finished:
            continue
        busy = _weighted(told["busy"], told["seconds"])
        samples = sum(trial.samples for trial in record.trials)
        arms[name] = Arm(sum(told["seconds"]), samples, record.clock["tokens_per_s"], busy, record)
        if name != "solo":
            grid = [(one.config["batch_size"], one.total_steps, one.total_samples) for one in record.trials]
    steps, scheduled = [(batch, count) for batch, count, _ in grid], sum(samples for *_, samples in grid)
    solo = arms.pop("solo", None)
    if solo is not None and grid:
        arms["solo"] = Arm(alone_by_us(solo).total_s(steps), scheduled, solo.tokens_per_s, solo.busy, solo.record)
    peft = _read(out / f"peft-{task}.json", None)
    if peft is not None and grid:
        arms["peft"] = Arm(alone_by_peft(peft).total_s(steps), scheduled, None, peft["busy"])
    crowds = {stage["processes"]: crowd_s(out, stage, steps) for stage in stages_of(out, task)}
    if crowds and grid:
        arms["crowd"] = Arm(min(crowds.values()), scheduled, None, None)
    return {name: arms[name] for name in NAMES if name in arms}


def alone_by_us(arm: Arm) -> Alone:
    """Reads the sample of configurations that were trained with one slot; what is paid once is counted once."""
    assert arm.record is not None
    clock, trials = arm.record.clock, arm.record.trials
    each = clock["evaluation_s"] / (len(trials) + 1)
    once = arm.seconds - clock["training_s"] - clock["evaluation_s"]
    return Alone(once, each, {one.config["batch_size"]: (one.slot_s or 0.0) / one.steps for one in trials})


def alone_by_peft(told: Mapping[str, Any]) -> Alone:
    """Reads the sample of configurations that PEFT trained."""
    trials = told["trials"]
    each = sum(one["setup_s"] + one["evaluation_s"] for one in trials) / len(trials)
    return Alone(told["imports_s"], each, {one["batch_size"]: one["step_s"] for one in trials})


def stages_of(out: Path, task: str) -> list[dict[str, Any]]:
    """Returns what was measured of several processes of PEFT at once, fewest first."""
    stages = [stage for stage in _read(out / "crowd.json", {"stages": []})["stages"] if stage["data"] == task]
    return sorted(stages, key=lambda stage: int(stage["processes"]))


def crowd_s(out: Path, stage: Mapping[str, Any], steps: Sequence[tuple[int, int]]) -> float:
    """Returns the seconds in which so many processes of PEFT would train configurations of (batch size, steps)."""
    once_s = float(_read(out / "crowd.json", None)["imports_s"])
    step_s = {one["batch_size"]: one["step_s"] for one in stage["steps"]}
    return Alone(once_s, stage["setup_s"] + stage["evaluation_s"], step_s).shared_s(steps, stage["processes"])


def crowd_table(out: Path, arms: Mapping[str, Mapping[str, Arm]]) -> str:
    """Returns what several processes of PEFT at once would take, by their number."""
    rows = []
    for task, of_task in arms.items():
        run = next((arm for name, arm in of_task.items() if name in RUNS), None)
        if run is None or run.record is None:
            continue
        steps = [(one.config["batch_size"], one.total_steps) for one in run.record.trials]
        for stage in stages_of(out, task):
            pace = ", ".join(f"{1000 * one['step_s']:.0f}" for one in stage["steps"])
            known = [one["busy"] for one in stage["steps"] if one["busy"] is not None]
            busy = f"{sum(known) / len(known):.0%}" if known else "-"
            counted = sum(one["steps"] for one in stage["steps"])
            rows.append([task, stage["processes"], f"{crowd_s(out, stage, steps):,.0f}", pace, counted, busy])
    columns = ["data set", "processes of PEFT", "seconds", "ms a step, by batch size", "steps timed", "GPU busy"]
    return table(columns, rows) if rows else ""


def speed_table(arms: Mapping[str, Mapping[str, Arm]]) -> str:
    """Returns times, and how many times faster than either way of one at a time; geometric means last."""
    columns = [
        "data set",
        "arm",
        "seconds",
        "samples",
        "tokens/s",
        "GPU busy",
        *(f"× {name}" for name in BASES.values()),
    ]
    rows, ratios = [], {}
    for task, of_task in arms.items():
        for name, arm in of_task.items():
            against = {base: of_task[base].seconds / arm.seconds for base in BASES if base in of_task}
            for base, ratio in against.items():
                ratios.setdefault((name, base), []).append(ratio)
            pace = "-" if arm.tokens_per_s is None else f"{arm.tokens_per_s:,.0f}"
            busy = "-" if arm.busy is None else f"{arm.busy:.0%}"
            told = [f"{arm.seconds:,.0f}", f"{arm.samples:,}", pace, busy]
            rows.append([task, NAMES[name], *told, *_times(against)])
    for name in NAMES:
        means = {base: geometric_mean(found) for (arm, base), found in ratios.items() if arm == name}
        if means and len(arms) > 1:
            rows.append(["geometric mean", NAMES[name], "", "", "", "", *_times(means)])
    return table(columns, rows) if rows else ""


def quality_table(out: Path, arms: Mapping[str, Mapping[str, Arm]]) -> str:
    """Returns the adapter that each arm found."""
    rows = []
    for task, of_task in arms.items():
        tested = _read(out / f"test-{task}.json", {})
        full = of_task.get("full")
        least = full.record.best_of(task) if full and full.record else None
        if "base" in tested and full and full.record:
            rows.append(
                [task, "the base itself", "", "", f"{full.record.base_loss[task]:.4f}", "", *_tested(tested["base"])]
            )
        for name, arm in of_task.items():
            best = arm.record.best_of(task) if arm.record is not None and name in RUNS else None
            if best is None:
                continue
            one = best.config
            settings = f"lr {one['learning_rate']:g}, rank {one['lora_rank']}, batch {one['batch_size']}"
            regret = "" if least is None else f"{best.best_loss / least.best_loss - 1:.2%}"
            found = [f"{best.best_loss:.4f}", regret, *_tested(tested.get(best.trial, {}))]
            rows.append([task, NAMES[name], best.trial, settings, *found])
    columns = ["data set", "arm", "trial", "settings", "validation loss", "regret", "test loss", "exact match"]
    return table(columns, rows) if rows else ""


def parity_table(out: Path, arms: Mapping[str, Mapping[str, Arm]]) -> str:
    """Returns what either way of one at a time makes of the same configurations, rows and steps."""
    rows = []
    for task, of_task in arms.items():
        peft, solo = _read(out / f"peft-{task}.json", None), of_task.get("solo")
        if peft is None or solo is None or solo.record is None:
            continue
        ours = {one.config["batch_size"]: one for one in solo.record.trials}
        for one in peft["trials"]:
            mine = ours[one["batch_size"]]
            pace = [f"{1000 * one['step_s']:.1f}", f"{1000 * (mine.slot_s or 0.0) / mine.steps:.1f}"]
            losses = [f"{one['validation_loss']:.4f}", f"{mine.best_loss:.4f}"]
            rows.append([task, one["batch_size"], one["steps"], *pace, *losses])
    columns = ["data set", "batch", "steps", "PEFT, ms a step", "ours", "PEFT, validation loss", "ours"]
    return table(columns, rows) if rows else ""


def repeat_table(arms: Mapping[str, Mapping[str, Arm]]) -> str:
    """Returns how far trials come out alike when they are trained once more, in a run with other company."""
    rows = []
    for task, of_task in arms.items():
        full = of_task["full"].record if "full" in of_task else None
        for name, arm in of_task.items():
            if full is None or arm.record is None or name not in RUNS or name == "full":
                continue
            once = {one.trial: one for one in full.trials}
            twice = [one for one in arm.record.trials if one.steps == one.total_steps]
            if not twice:
                continue
            moved = np.array([one.best_loss / once[one.trial].best_loss - 1 for one in twice])
            best = full.best_of(task)
            of_best = [change for one, change in zip(twice, moved, strict=True) if best and one.trial == best.trial]
            spread = [f"{value:.2%}" for value in (moved.mean(), np.median(np.abs(moved)), np.abs(moved).max())]
            rows.append([task, NAMES[name], len(twice), *spread, f"{of_best[0]:+.2%}" if of_best else "ended early"])
    columns = [
        "data set",
        "arm",
        "trials trained twice",
        "mean change",
        "median size",
        "largest",
        "the full grid's best",
    ]
    return table(columns, rows) if rows else ""


def pieces_of(arm: Arm) -> dict[str, float]:
    """Returns the seconds of a run by what they went to, in the order of `PIECES`."""
    assert arm.record is not None
    clock = arm.record.clock
    by_tokens = clock["training_s"] - clock["fixed_s"]
    found = {
        "fixed": clock["fixed_s"],
        "text": by_tokens * (1 - clock["padding"]),
        "padding": by_tokens * clock["padding"],
        "evaluation": clock["evaluation_s"],
        "compile": clock["compile_s"],
        "exchange": clock["exchange_s"],
        "checkpoint": clock["checkpoint_s"],
    }
    return {**found, "rest": max(0.0, arm.seconds - sum(found.values()))}


def pieces_table(arms: Mapping[str, Mapping[str, Arm]]) -> str:
    """Returns where the seconds of every run of the grid went."""
    rows = []
    for task, of_task in arms.items():
        for name, arm in of_task.items():
            if arm.record is None or name not in RUNS:
                continue
            host = arm.record.clock["host_s"]
            pieces = [f"{seconds:,.0f}" for seconds in pieces_of(arm).values()]
            rows.append([task, NAMES[name], *pieces, f"{host:,.0f}", arm.record.clock["compiles"]])
    columns = ["data set", "arm", *PIECES.values(), "host, within training", "compilations"]
    return table(columns, rows) if rows else ""


def regret_tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what rules would have saved and lost: by rule over everything, then of the presets by data set."""
    if not rows:
        return []
    columns = ["rule", "data set", "saved", "regret", "saved, sub-grids", "mean", "p95", "worst", "best kept"]
    everything = [row for row in rows if row["group"] == "all"]
    apart = [
        row for row in rows if row["group"] != "all" and row["rule"] in ("default", "eager", "paper", "halving", "topk")
    ]
    return [table(columns, [_regret(row) for row in part]) for part in (everything, apart) if part]


def pictures(arms: Mapping[str, Mapping[str, Arm]]) -> dict[str, Figure]:
    """Returns the figures, by name, that what is there is enough for."""
    found = {}
    if arms:
        found["alto-times"] = times_picture(seconds_of(arms))
    runs = [(task, name, arm) for task, of_task in arms.items() for name, arm in of_task.items() if name in RUNS]
    if runs:
        pieces = [pieces_of(arm) for *_, arm in runs]
        found["alto-pieces"] = bars(
            [f"{task}: {NAMES[name]}" for task, name, _ in runs],
            {title: [one[key] for one in pieces] for key, title in PIECES.items()},
            title="Where the time of a run goes",
            value_label="seconds",
            stacked=True,
        )
    return found


def seconds_of(arms: Mapping[str, Mapping[str, Arm]]) -> dict[str, dict[str, float]]:
    """Returns the seconds of every arm, by data set."""
    return {task: {name: arm.seconds for name, arm in of_task.items()} for task, of_task in arms.items()}


def _regret(row: Mapping[str, Any]) -> list[str]:
    grid, parts = row["grid"], row["sub_grids"]
    shares = [grid["saved"], grid["regret_mean"], parts["saved"]]
    shares += [parts[f"regret_{name}"] for name in ("mean", "p95", "max")] + [parts["best_kept"]]
    digits = (1, 2, 1, 2, 2, 2, 1)
    return [row["rule"], row["group"], *(f"{share:.{n}%}" for share, n in zip(shares, digits, strict=True))]


def _times(ratios: Mapping[str, float]) -> list[str]:
    return [f"{ratios[base]:.1f}" if base in ratios else "-" for base in BASES]


def _tested(result: Mapping[str, Any]) -> list[str]:
    match = f"{result['exact match']:.1%}" if "exact match" in result else "-"
    return [f"{result['loss']:.4f}", match] if result else ["-", "-"]


def _weighted(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


def _record(folder: Path) -> RunRecord | None:
    if not (folder / JOURNAL_NAME).is_file():
        return None
    with Journal.read(folder) as journal:
        return read_record(journal)


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
