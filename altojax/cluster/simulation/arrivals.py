"""The tasks of a workload: what is true of each, and what a scheduler is told."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from altojax.cluster.scheduling.resources.job import Job, TaskFamily
from altojax.cluster.simulation.workload import MOST_TASKS, RandomConfig, SimulatedTasks, Workload
from altojax.early_exit.replay import replay, summary
from altojax.report.recorded_curves import read_groups
from jaxrun.config.config import check_config
from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError, nearest


@dataclass(frozen=True)
class Arrival:
    """A task that is submitted.

    Attributes:
        at_s: When.
        job: As the scheduler sees it: speeds as estimated, and all samples that are asked for.
        speeds: True samples a second by GPUs.
        samples: True samples that it trains on.
        group: Decides its colour.
    """

    at_s: float
    job: Job
    speeds: Mapping[int, float]
    samples: float
    group: str

    @property
    def true_job(self) -> Job:
        """The task as hindsight knows it."""
        return replace(self.job, speeds=self.speeds, samples=self.samples)


def arrivals(workload: Workload, folder: Path) -> list[Arrival]:
    """Returns the tasks of a workload in the order of their arrival.

    Args:
        workload: As loaded.
        folder: Where it lies; a trace must be inside, and curves are found from it.

    Raises:
        UserError: A trace that cannot be read or has a wrong line; names that occur twice; a task without the speeds
            that ``batching: false`` needs; curves that cannot be read or replayed.
    """
    random = np.random.default_rng([workload.seed, 0])
    if workload.random is not None:
        configs: Iterable[SimulatedTasks] = _drawn(workload.random, random)
    elif workload.trace is not None:
        configs = _traced(workload.trace, folder)
    else:
        configs = workload.tasks
    found: list[Arrival] = []
    for config in configs:
        if len(found) + config.count > MOST_TASKS:
            raise UserError(f"tasks: more than {MOST_TASKS:,}, expected fewer")
        kept = _kept(config, folder) if workload.early_exit else 1.0
        found += [_arrival(one, workload, kept, random) for one in _repeated(config)]
    names: set[str] = set()
    for one in found:
        if one.job.name in names:
            raise UserError(f"tasks: given '{one.job.name}' twice, expected a name for each task")
        names.add(one.job.name)
    return sorted(found, key=lambda one: one.at_s)


def _kept(config: SimulatedTasks, folder: Path) -> float:
    """Returns the share of a task's samples that early exit leaves."""
    if config.replayed is None:
        return config.kept
    path, group = folder / config.replayed.curves, config.replayed.group
    groups = read_groups(path)
    if group is not None:
        if group not in groups:
            raise UserError(f"task '{config.name}': replayed.group: no '{group}' in {path}{nearest(group, groups)}")
        groups = {group: groups[group]}
    kept = 1.0 - summary(replay(config.replayed.early_exit, groups))["saved"]
    if not kept:
        raise UserError(f"task '{config.name}': replayed.curves: {path} has no trained steps, expected some")
    return kept


def _arrival(config: SimulatedTasks, workload: Workload, kept: float, random: np.random.Generator) -> Arrival:
    speeds = config.speeds if workload.batching else config.alone_speeds
    if not speeds:
        raise UserError(f"task '{config.name}': no alone_speeds, expected them where batching is false")
    estimated = dict(speeds)
    if workload.noise:
        off = np.exp(random.normal(0.0, workload.noise, len(speeds)))
        estimated = {width: speed * float(by) for (width, speed), by in zip(speeds.items(), off, strict=True)}
    family = None
    if config.family is not None and workload.batching:
        known = config.family
        family = TaskFamily(
            f"{config.tenant}/{known.key}", known.trials, known.batch, known.slots, known.step_s, known.sample_s
        )
    job = Job(config.name, config.tenant, estimated, config.samples, config.setup_s, family)
    return Arrival(config.arrival_s, job, speeds, config.samples * kept, config.group or config.tenant)


def _repeated(config: SimulatedTasks) -> Iterator[SimulatedTasks]:
    if config.count == 1:
        yield config
        return
    for number in range(config.count):
        at_s = config.arrival_s + number * config.every_s
        yield config.model_copy(update={"name": f"{config.name}-{number + 1}", "arrival_s": at_s})


def _drawn(config: RandomConfig, random: np.random.Generator) -> Iterator[SimulatedTasks]:
    widths, tenants = sorted(set(config.widths)), list(config.tenants)
    odds = np.array([config.tenants[tenant] for tenant in tenants])
    at_s = 0.0
    for number in range(config.count):
        at_s += float(random.exponential(config.every_s)) if config.every_s else 0.0
        duration_s = math.exp(random.uniform(math.log(config.duration_s[0]), math.log(config.duration_s[1])))
        serial = random.uniform(*config.serial)
        least = int(random.integers(len(widths), size=3).min())
        most = int(random.integers(least, len(widths)))
        yield SimulatedTasks(
            name=f"task-{number + 1}",
            tenant=str(random.choice(tenants, p=odds / odds.sum())),
            arrival_s=at_s,
            speeds={
                width: 1000.0 / (duration_s * (serial + (1.0 - serial) / width)) for width in widths[least : most + 1]
            },
            samples=1000.0,
            kept=random.uniform(*config.kept),
            setup_s=config.setup_s,
        )


def _traced(trace: str, folder: Path) -> Iterator[SimulatedTasks]:
    path = (folder / trace).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"trace: given '{trace}', expected a file inside {folder}")
    readers = {".jsonl": _jsonl, ".csv": _csv}
    if path.suffix not in readers:
        raise UserError(f"trace: given '{trace}', expected a .jsonl or a .csv file")
    if not path.is_file():
        raise UserError(f"trace: {path} is not there, expected a file with a task a line")
    try:
        with user_errors(path):
            text = path.read_text("utf-8")
        for line, row in readers[path.suffix](text, path):
            yield check_config(SimulatedTasks, row, f"{path}:{line}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected UTF-8 text with a task a line") from error


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error}, expected a task a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: given a {type(row).__name__}, expected an object with a task's keys")
        yield number, row


def _csv(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A column for each key, and for the speeds one for each count, as ``speed_2``; empty cells are left out."""
    reader = csv.DictReader(text.splitlines(), strict=True)
    words = ("name", "tenant", "group")
    for cells in reader:
        row: dict[str, Any] = {"speeds": {}}
        for column, cell in cells.items():
            if column is None or cell is None:
                expected = len(reader.fieldnames or ())
                raise UserError(
                    f"{path}:{reader.line_num}: another number of cells than the {expected} of the first line"
                )
            if not cell:
                continue
            value = cell if column in words else _number(cell, f"{path}:{reader.line_num}: {column}")
            if column.startswith("speed_"):
                row["speeds"][column.removeprefix("speed_")] = value
            else:
                row[column] = value
        yield reader.line_num, row


def _number(cell: str, where: str) -> int | float:
    try:
        return int(cell) if cell.isdecimal() else float(cell)
    except ValueError as error:
        raise UserError(f"{where}: given '{cell}', expected a number") from error
