"""Compares ways to search on recorded full grids: the best loss found against the samples spent on it.

    python scripts/early_exit/compare_search.py docs/figures/alto-curves.csv.gz

Every grid holds all configurations of a search space, in the grid's order, so that whatever a search asks for was
recorded. A search is played as a run would go: slots step together, a free one goes to a trial that waits, longest
schedule first, or to one that is proposed then from what is known by then; rungs are settled by the run's own code.
Regret is how far the best loss found is above the lowest of the grid. `--average COLUMN` ranks trials at rungs, and for
proposals, by that column of the file in place of the validation loss. `--sampler gp` needs PyTorch beside optuna.
"""

from jaxrun.process.script import run_script

import heapq
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.csv
from rich.console import Console
from rich.table import Table

from altojax.config.search.configurations import first_of
from altojax.config.search.duplicates import draw_different
from altojax.config.search.prior import draws, pick
from altojax.config.search.proposer import NEW, Tried, proposals, tpe
from altojax.early_exit.curve import Curve
from altojax.early_exit.milestones import rung_steps
from altojax.early_exit.replay import RecordedTrial
from altojax.early_exit.rules import Rules
from altojax.early_exit.standings import standings
from altojax.run.decisions import settle_rungs
from jaxrun.config.script_options import ScriptOptions
from jaxrun.process.errors import UserError

SPACE: Mapping[str, Sequence[Any]] = {
    "learning_rate": (4e-5, 2e-4, 8e-4, 1.2e-3, 2e-3),
    "lora_rank": (16, 32, 64),
    "batch_size": (1, 2, 4, 8),
}
"""Of configs/reproduce-alto.yaml; SmolLM2 has 135 million parameters."""
PARAMETERS = 135e6
BUDGETS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Samples spent, as shares of the full grid's."""
RULES: Mapping[str, Any] = {
    "none": "none",
    "default": "default",
    "quarter at 5 %": {"preset": "none", "underperforming": {"at": [0.05], "keep": [0.25]}},
}
Cell = tuple[Any, ...]


@dataclass(frozen=True)
class Recorded:
    """A configuration of a full grid.

    Attributes:
        trial: What was recorded of it.
        ranked: The same curve with what trials are ranked by in place of the validation loss.
    """

    trial: RecordedTrial
    ranked: Curve


@dataclass
class Played:
    """A trial as a search plays it: the parts of a trial and of its progress that `settle_rungs` reads."""

    cell: Cell
    recorded: Recorded
    name: str
    rungs: tuple[int, ...]
    proposed: bool
    task: str = "grid"
    phase: str = "waiting"
    slot: int | None = None
    step: int = 0
    done: int = 0
    rung: int = 0
    slot_s: float = 0.0
    status: str = ""
    reason: str = ""
    detail: str = ""
    stream: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stream = SimpleNamespace(total_steps=self.recorded.trial.max_steps, samples_after=lambda step: step)

    def curve(self, until: float = 1.0) -> Curve:
        """What it was ranked by, up to a share of its schedule."""
        fraction = self.recorded.ranked.fraction
        return self.recorded.ranked.first(min(self.done, int(np.searchsorted(fraction, until + 1e-9, side="right"))))


Propose = Callable[[Sequence[Played], int], Cell]


def play(
    first: Sequence[Cell],
    later: int,
    propose: Propose,
    group: Mapping[Cell, Recorded],
    rules: Rules,
    alarms: Mapping[Cell, int],
    slots: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays a search.

    Args:
        first: Configurations that it begins with.
        later: How many are proposed after them.
        propose: Returns one of the group's configurations from what is known by then.
        group: The full grid.
        rules: End trials.
        alarms: The evaluation at which each configuration's own curve ends it.
        slots: Trials at once.

    Returns:
        Shares of the grid's samples, ascending, and the best loss found by then.
    """
    every = dict(zip(group, _rungs(rules, group), strict=True))
    trials = [Played(cell, group[cell], f"{i:02d}", every[cell], False) for i, cell in enumerate(first)]
    found: list[tuple[float, float]] = []
    events: list[tuple[float, int, int]] = []
    now, spent, best, ticket = 0.0, 0.0, math.inf, itertools.count()
    while True:
        free = slots - sum(one.phase == "running" for one in trials)
        waiting = [one for one in trials if one.phase == "waiting"]
        reported = all(
            one.phase == "done" or (one.done and (one.rung or not one.rungs)) for one in trials[: len(first)]
        )
        while len(waiting) < free and later and reported:
            cell = propose(trials, len(trials))
            trials.append(Played(cell, group[cell], f"{len(trials):02d}", every[cell], True))
            waiting.append(trials[-1])
            later -= 1
        waiting.sort(key=lambda one: (-one.recorded.trial.max_steps, one.name))
        for one in waiting[:free]:
            one.phase = "running"
            _schedule(events, now, one, trials.index(one), ticket)
        if not events:
            return np.array([at for at, _ in found]), np.array([loss for _, loss in found])
        now = events[0][0]
        while events and events[0][0] == now:
            _, _, i = heapq.heappop(events)
            one = trials[i]
            steps, losses = one.recorded.trial.steps, one.recorded.trial.curve.val_loss
            spent += (steps[one.done] - one.step) / one.recorded.trial.max_steps / len(group)
            one.step, loss = int(steps[one.done]), losses[one.done]
            one.done += 1
            best = min(best, loss if np.isfinite(loss) else math.inf)
            found.append((spent, best))
            if one.done > alarms[one.cell] or one.done == len(steps):
                one.phase = "done"
            elif one.rung < len(one.rungs) and one.step >= one.rungs[one.rung]:
                one.phase = "rung"
        settle_rungs(trials, trials, rules)  # type: ignore[arg-type]
        running = {i for _, _, i in events}
        for i, one in enumerate(trials):
            if one.phase == "running" and i not in running:
                _schedule(events, now, one, i, ticket)


def _schedule(events: list[tuple[float, int, int]], now: float, one: Played, i: int, ticket: itertools.count) -> None:
    heapq.heappush(events, (now + float(one.recorded.trial.steps[one.done]) - one.step, next(ticket), i))


def _rungs(rules: Rules, group: Mapping[Cell, Recorded]) -> list[tuple[int, ...]]:
    return rung_steps(rules, [one.trial.schedule for one in group.values()])


def learned(seed: int, sampler: Callable[[int], Any], choices: int) -> Propose:
    """Returns a search around those that stand first; of so many new proposals one is drawn by the prior."""

    def propose(trials: Sequence[Played], number: int) -> Cell:
        stand = standings({one.name: one.curve() for one in trials if one.done})
        tried = [Tried(dict(zip(SPACE, one.cell, strict=True)), stand.get(one.name)) for one in trials]
        taken = {one.cell for one in trials}
        new: dict[Cell, dict[str, Any]] = {}
        for values in proposals(SPACE, tried, sampler(1000 * seed + number)):
            if (cell := tuple(values.values())) not in taken:
                new.setdefault(cell, values)
            if len(new) == choices:
                break
        random = np.random.default_rng([seed, number])
        if new:
            return tuple(pick(list(new.values()), PARAMETERS, random).values())
        left = [cell for cell in itertools.product(*SPACE.values()) if cell not in taken]
        return left[int(random.integers(len(left)))]

    return propose


def beginning(count: int, seed: int, *, known: bool) -> list[Cell]:
    """Draws configurations, none twice: from the prior, or all alike."""
    random = np.random.default_rng(seed)
    if not known:
        cells = list(itertools.product(*SPACE.values()))
        return [cells[i] for i in random.choice(len(cells), count, replace=False)]
    drawn = draws({name: list(values) for name, values in SPACE.items()}, PARAMETERS, random)
    return draw_different((tuple(one.values()) for one in drawn), count, lambda cell: cell)


def gp(seed: int) -> Any:
    """Returns Optuna's GP sampler."""
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True)


def read_grids(path: str, average: str | None) -> dict[str, dict[Cell, Recorded]]:
    """Reads full grids: trials in the grid's order, by group."""
    table = pyarrow.csv.read_csv(path)
    lacking = [name for name in ("val_loss", *([average] if average else [])) if name not in table.column_names]
    if lacking:
        raise UserError(f"{path}: no column '{lacking[0]}', found {', '.join(table.column_names)}")
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["group"], str(row["trial"]), row["step"])):
        rows.setdefault(row["group"], {}).setdefault(str(row["trial"]), []).append(row)
    grids = {}
    for group, trials in rows.items():
        cells = list(itertools.product(*SPACE.values()))
        if len(trials) != len(cells):
            raise UserError(f"{path}: group '{group}' has {len(trials)} trials, expected the grid's {len(cells)}")
        grids[group] = {cell: _recorded(one, average) for cell, one in zip(cells, trials.values(), strict=True)}
    return grids


def _recorded(rows: Sequence[Mapping[str, Any]], average: str | None) -> Recorded:
    steps = np.array([row["step"] for row in rows], np.float64)
    most = int(rows[0]["max_steps"])
    train = np.array([row.get("train_loss", math.nan) for row in rows], np.float64)
    curve = Curve(steps / most, train, np.array([row["val_loss"] for row in rows], np.float64))
    ranked = curve if average is None else replace(curve, val_loss=np.array([row[average] for row in rows], np.float64))
    return Recorded(RecordedTrial(steps, most, curve), ranked)


def regrets(path: tuple[np.ndarray, np.ndarray], lowest: float) -> list[float]:
    """Returns the regret at every budget, in percent, and at the end; before a first evaluation it is that of it."""
    at, best = path
    places = [max(int(np.searchsorted(at, budget + 1e-9, side="right")) - 1, 0) for budget in BUDGETS]
    return [100 * (best[place] / lowest - 1) for place in [*places, -1]]


def main() -> None:
    """Plays all searches and prints a table for each preset."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("curves", nargs="+")
    parser.add_argument("--average", default=None)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--sampler", choices=("tpe", "gp"), default="tpe")
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=["none", "default"])
    options = parser.read()
    warnings.filterwarnings("ignore", module="optuna")
    grids = {g: one for file in options.curves for g, one in read_grids(file, options.average).items()}
    sampler = {"tpe": tpe, "gp": gp}[options.sampler]
    third = first_of(options.trials)
    cells = list(itertools.product(*SPACE.values()))
    for name in options.rules:
        rules = Rules.model_validate(RULES[name])
        table = Table("", *(f"{budget:.0%}" for budget in BUDGETS), "end", "spent", "best kept", title=f"rules: {name}")
        searches: dict[str, tuple[int, Callable[[int], list[Cell]]]] = {
            "grid order": (1, lambda seed: cells[: options.trials]),
            "random": (1, lambda seed: beginning(options.trials, seed, known=False)),
            "prior alone": (1, lambda seed: beginning(options.trials, seed, known=True)),
            "refine, the sampler's first": (1, lambda seed: beginning(third, seed, known=True)),
            "refine": (NEW, lambda seed: beginning(third, seed, known=True)),
        }
        for label, (choices, begins) in searches.items():
            seeds = 1 if label == "grid order" else options.seeds
            outcome, spent = [], []
            for group in grids.values():
                judged = rules.first_alarms([one.trial.curve for one in group.values()])
                alarms = dict(zip(group, judged, strict=True))
                lowest = min(float(np.nanmin(one.trial.curve.val_loss)) for one in group.values())
                for seed in range(seeds):
                    first = begins(seed)
                    propose = learned(seed, sampler, choices)
                    path = play(first, options.trials - len(first), propose, group, rules, alarms, options.slots)
                    outcome.append(regrets(path, lowest))
                    spent.append(path[0][-1])
            mean = np.mean(outcome, axis=0)
            kept = np.mean([one[-1] < 1e-9 for one in outcome])
            table.add_row(label, *(f"{one:.2f}" for one in mean), f"{np.mean(spent):.0%}", f"{kept:.0%}")
        Console(width=130).print(table)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
