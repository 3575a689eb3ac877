"""Compares ways to search on recorded full grids: the best loss found against the samples spent on it.

    python scripts/early_exit/compare_search.py docs/figures/alto-curves.csv.gz

Every grid holds all configurations of a search space, in the grid's order, so that whatever a search asks for was
recorded. A search is played as a run would go: slots step together, a free one goes to a trial that waits, longest
schedule first, or to one that is proposed then from what is known by then; rungs are settled by the run's own code.
Regret is how far the best result found is above the best of the grid; beside that at the end stands its standard error
over seeds. A file with the column average_val_loss has rules by averages rank by it and results by whichever
is the lower loss, as a run; one without has the rules that a run without averages has. Proposals are by the validation
loss. `--sampler gp` needs PyTorch beside optuna.
"""

from jaxrun.process.script import run_script

import heapq
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from altojax.config.search.configurations import first_of
from altojax.config.search.duplicates import draw_different
from altojax.config.search.prior import draws, pick
from altojax.config.search.proposer import NEW, Tried, proposals, tpe
from altojax.early_exit.curve import Curve
from altojax.early_exit.milestones import rung_steps
from altojax.early_exit.replay import RecordedTrial, first_alarms, result_losses
from altojax.early_exit.rules import Rules
from altojax.early_exit.signals import finite_or_nan
from altojax.early_exit.standings import standings
from altojax.report.curve_files import read_curves
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
    "quarter at 5 % by averages": {
        "preset": "none",
        "underperforming": {"at": [0.05], "keep": [0.25], "rank_by": "average"},
    },
}
Cell = tuple[Any, ...]


@dataclass
class Played:
    """A trial as a search plays it: the parts of a trial and of its progress that `settle_rungs` reads."""

    cell: Cell
    recorded: RecordedTrial
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
        self.stream = SimpleNamespace(total_steps=self.recorded.max_steps, samples_after=lambda step: step)

    def curve(self, until: float = 1.0) -> Curve:
        """Its evaluations, up to a share of its schedule."""
        curve = self.recorded.curve
        return curve.first(min(self.done, int(np.searchsorted(curve.fraction, until + 1e-9, side="right"))))


Propose = Callable[[Sequence[Played], int], Cell]


def play(
    first: Sequence[Cell],
    later: int,
    propose: Propose,
    group: Mapping[Cell, RecordedTrial],
    rules: Rules,
    results: Mapping[Cell, np.ndarray],
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
        results: What each configuration would have as its result of each evaluation.
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
        waiting.sort(key=lambda one: (-one.recorded.max_steps, one.name))
        for one in waiting[:free]:
            one.phase = "running"
            _schedule(events, now, one, trials.index(one), ticket)
        if not events:
            return np.array([at for at, _ in found]), np.array([loss for _, loss in found])
        now = events[0][0]
        while events and events[0][0] == now:
            _, _, i = heapq.heappop(events)
            one = trials[i]
            steps = one.recorded.steps
            spent += (steps[one.done] - one.step) / one.recorded.max_steps / len(group)
            one.step, loss = int(steps[one.done]), results[one.cell][one.done]
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
    heapq.heappush(events, (now + float(one.recorded.steps[one.done]) - one.step, next(ticket), i))


def _rungs(rules: Rules, group: Mapping[Cell, RecordedTrial]) -> list[tuple[int, ...]]:
    return rung_steps(rules, [one.schedule for one in group.values()])


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


def read_grids(path: str) -> dict[str, dict[Cell, RecordedTrial]]:
    """Reads full grids: trials in the grid's order, by group."""
    grids, cells = {}, list(itertools.product(*SPACE.values()))
    for group, trials in read_curves(path).items():
        if len(trials) != len(cells):
            raise UserError(f"{path}: group '{group}' has {len(trials)} trials, expected the grid's {len(cells)}")
        grids[group] = dict(zip(cells, trials.values(), strict=True))
    return grids


def regrets(path: tuple[np.ndarray, np.ndarray], lowest: float) -> list[float]:
    """Returns the regret at every budget, in percent, and at the end; before a first evaluation it is that of it."""
    at, best = path
    places = [max(int(np.searchsorted(at, budget + 1e-9, side="right")) - 1, 0) for budget in BUDGETS]
    return [100 * (best[place] / lowest - 1) for place in [*places, -1]]


def main() -> None:
    """Plays all searches and prints a table for each preset."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("curves", nargs="+")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--sampler", choices=("tpe", "gp"), default="tpe")
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=["none", "default"])
    options = parser.read()
    warnings.filterwarnings("ignore", module="optuna")
    grids = {g: one for file in options.curves for g, one in read_grids(file).items()}
    sampler = {"tpe": tpe, "gp": gp}[options.sampler]
    third = first_of(options.trials)
    cells = list(itertools.product(*SPACE.values()))
    for name in options.rules:
        asked = Rules.model_validate(RULES[name])
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
                rules = asked.for_curves(set.intersection(*(set(one.curve.more) for one in group.values())))
                alarms, results = first_alarms(rules, {"": group})[""], result_losses(rules, group)
                lowest = min(float(np.nanmin(finite_or_nan(one))) for one in results.values())
                for seed in range(seeds):
                    first = begins(seed)
                    propose = learned(seed, sampler, choices)
                    path = play(
                        first, options.trials - len(first), propose, group, rules, results, alarms, options.slots
                    )
                    outcome.append(regrets(path, lowest))
                    spent.append(path[0][-1])
            mean = [f"{one:.2f}" for one in np.mean(outcome, axis=0)]
            ends = np.reshape([one[-1] for one in outcome], (len(grids), seeds)).mean(axis=0)
            mean[-1] += f" ± {ends.std() / seeds**0.5:.2f}"
            kept = np.mean([one[-1] < 1e-9 for one in outcome])
            table.add_row(label, *mean, f"{np.mean(spent):.0%}", f"{kept:.0%}")
        Console(width=130).print(table)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
