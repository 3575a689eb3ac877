"""A schedule by constraint programming: CP-SAT of OR-Tools (extra ``plan``), which begins at a list schedule.

ALTO ("Inter-task scheduler") plans so, with one width for each task and GPUs one by one. Here a node is one resource,
and a task is an interval for each width and node that it may take. Without a schedule to begin at, CP-SAT finds none in
seconds; from one it continues by large neighbourhood search.
"""

from importlib.util import find_spec
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from altojax.cluster.scheduling.planning.list_schedule import Listed
from altojax.cluster.scheduling.planning.local_search import Candidate
from altojax.cluster.scheduling.planning.problem import Problem
from altojax.cluster.scheduling.resources.nodes import Gpus

RULE = "cp-sat"

_TICKS = 2_000
"""The schedule to begin at lasts about so many ticks, in which durations are rounded up. Finer ticks find less."""

_NOT_USED = ("fj", "fs_random", "graph_arc_lns", "graph_cst_lns", "graph_dec_lns", "graph_var_lns", "ls", "ls_lin")
"""Searches of CP-SAT that only took time here."""


def installed() -> bool:
    """Whether OR-Tools is installed."""
    return find_spec("ortools") is not None


def solve(problem: Problem, begin: Candidate, bound_s: float, limit_s: float, enough: float) -> Candidate | None:
    """Looks for a schedule that ends sooner than another. The same input gives the same schedule.

    Args:
        problem: What is planned.
        begin: Where to begin; it holds every task, at least one.
        bound_s: No schedule ends sooner.
        limit_s: Deterministic seconds of CP-SAT: they count its work, not time, which is three or four times as long.
        enough: Stops at a schedule that is above the best possible by no more than this share.

    Returns:
        A schedule that ends sooner, or None. Each of its tasks has GPUs of its own and may be planned to wait for them.
    """
    from ortools.sat.python import cp_model  # takes most of a second

    grid = _Grid(problem, begin.listed.end_s / _TICKS)
    built = _build(grid, begin, bound_s)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.interleave_search = True
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = limit_s
    solver.parameters.relative_gap_limit = enough
    solver.parameters.subsolvers.append("default_lp")
    solver.parameters.ignore_subsolvers.extend(_NOT_USED)
    if solver.solve(built.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    chosen = {}
    for way in built.ways:
        nodes = [name for name, literal in way.nodes.items() if solver.value(literal)]
        if nodes:
            chosen[way.task] = (way.column, dict.fromkeys(nodes, way.on_each))
    found = _exact(grid, [solver.value(start) for start in built.starts], chosen)
    return found if found.value() < begin.value() else None


class _Grid:
    """The problem in whole ticks, rounded up: what fits in ticks fits in seconds."""

    def __init__(self, problem: Problem, tick_s: float):
        self.problem, self.tick_s = problem, tick_s
        self.durations = [[self.up(one) if np.isfinite(one) else 0 for one in row] for row in problem.durations_s]
        self.widths = [int(width) for width in problem.widths]
        self.busy_until = {
            (name, gpu): one.until_s for one in problem.busy for name, indices in one.gpus.items() for gpu in indices
        }

    def up(self, seconds: float) -> int:
        return ceil(seconds / self.tick_s)

    def starts_of(self, begin: Candidate) -> list[int]:
        """A schedule's starts in ticks: tasks in the same order on the same GPUs, each as early as these allow."""
        free_at = {gpu: self.up(until_s) for gpu, until_s in self.busy_until.items()}
        starts = [0] * len(begin.columns)
        for task in sorted(begin.order, key=begin.listed.starts_s.__getitem__):
            gpus = [(name, gpu) for name, indices in begin.listed.gpus[task].items() for gpu in indices]
            starts[task] = max(free_at.get(gpu, 0) for gpu in gpus)
            free_at.update(dict.fromkeys(gpus, starts[task] + self.durations[task][begin.columns[task]]))
        return starts

    def places_for(self, width: int) -> list[tuple[list[str], int, int]]:
        """Nodes to choose from, how many of them a gang takes, and its GPUs on each."""
        nodes, splits = self.problem.cluster.nodes, self.problem.cluster.splits(width)
        if not splits:
            return [([name for name, size in nodes.items() if size >= width], 1, width)]
        return [([name for name, own in nodes.items() if own == size], count, size) for size, count in splits]


class _Way(NamedTuple):
    """A width of a task and the nodes on which it may run so."""

    task: int
    column: int
    nodes: dict[str, Any]  # name -> literal: it runs there
    on_each: int


class _Built(NamedTuple):
    model: Any
    starts: list[Any]
    ways: list[_Way]


def _build(grid: _Grid, begin: Candidate, bound_s: float) -> _Built:
    from ortools.sat.python import cp_model

    problem, nodes, hint = grid.problem, grid.problem.cluster.nodes, grid.starts_of(begin)
    ends = [start + row[column] for start, row, column in zip(hint, grid.durations, begin.columns, strict=True)]
    horizon = max([*ends, *(grid.up(one.until_s) for one in problem.busy)])
    lowest = max([int(bound_s / grid.tick_s), *(grid.up(one.until_s) for one in problem.busy)])
    model = cp_model.CpModel()
    makespan = model.new_int_var(min(lowest, horizon), horizon, "makespan")
    model.add_hint(makespan, horizon)
    runs: dict[str, list[Any]] = {name: [] for name in nodes}
    gpus: dict[str, list[int]] = {name: [] for name in nodes}
    for one in problem.busy:
        for name, indices in one.gpus.items():
            runs[name].append(model.new_fixed_size_interval_var(0, grid.up(one.until_s), ""))
            gpus[name].append(len(indices))
    energy: Any = sum(grid.up(until_s) for until_s in grid.busy_until.values())
    starts, ways = [], []
    for task, durations in enumerate(grid.durations):
        start = model.new_int_var(0, horizon, "")
        model.add_hint(start, hint[task])
        starts.append(start)
        one_of: list[Any] = []
        length: Any = 0
        for column, duration in enumerate(durations):
            if not 0 < duration <= horizon:
                continue
            width = grid.widths[column]
            for names, count, on_each in grid.places_for(width):
                there = begin.listed.gpus[task] if begin.columns[task] == column else {}
                literals = {name: model.new_bool_var("") for name in names}
                for name, literal in literals.items():
                    model.add_hint(literal, name in there)
                    runs[name].append(model.new_optional_fixed_size_interval_var(start, duration, literal, ""))
                    gpus[name].append(on_each)
                ways.append(_Way(task, column, literals, on_each))
                whole = list(literals.values())  # of which one is true where the task runs so
                if count > 1:
                    whole = [model.new_bool_var("")]
                    model.add_hint(whole[0], any(name in literals for name in there))
                    model.add(sum(literals.values()) == count * whole[0])
                one_of += whole
                length += duration * sum(whole)
                energy += duration * width * sum(whole)
        model.add_exactly_one(one_of)
        model.add(start + length <= makespan)
    for name, size in nodes.items():
        model.add_cumulative(runs[name], gpus[name], size)
    model.add(energy <= problem.cluster.gpus * makespan)
    model.minimize(makespan)
    return _Built(model, starts, ways)


def _exact(grid: _Grid, starts: list[int], chosen: dict[int, tuple[int, dict[str, int]]]) -> Candidate:
    """Gives each task GPUs of its nodes, and starts it in seconds as early as these allow: no later than in ticks."""
    nodes, count = grid.problem.cluster.nodes, len(starts)
    free_at = {(name, gpu): (0, 0.0) for name, size in nodes.items() for gpu in range(size)}
    free_at.update({gpu: (grid.up(until_s), until_s) for gpu, until_s in grid.busy_until.items()})
    order = sorted(range(count), key=lambda task: (starts[task], task))
    begins_s, ends_s = [0.0] * count, [0.0] * count
    where: list[Gpus] = [{}] * count
    for task in order:
        column, wanted = chosen[task]
        gpus: dict[str, tuple[int, ...]] = {}
        for name, number in wanted.items():
            ready = [gpu for gpu in range(nodes[name]) if free_at[name, gpu][0] <= starts[task]]
            soonest = sorted((free_at[name, gpu][1], gpu) for gpu in ready)
            gpus[name] = tuple(sorted(gpu for _, gpu in soonest[:number]))
        own = [(name, gpu) for name, indices in gpus.items() for gpu in indices]
        begins_s[task] = max(free_at[gpu][1] for gpu in own)
        ends_s[task] = begins_s[task] + float(grid.problem.durations_s[task, column])
        free_at.update(dict.fromkeys(own, (starts[task] + grid.durations[task][column], ends_s[task])))
        where[task] = gpus
    last_s = max(until_s for _, until_s in free_at.values())
    columns = [chosen[task][0] for task in range(count)]
    return Candidate(RULE, columns, order, Listed(begins_s, ends_s, where, last_s))
