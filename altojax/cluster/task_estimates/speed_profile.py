"""Speed profiles of tasks by number of GPUs: measured where they were, predicted from that elsewhere.

A step takes ``step_s + sample_s · samples of the step`` seconds. Runs measure both in their first minutes, at no cost
(`altojax.run.run_times.RunTimes.pace`), and the store keeps what they found by base, shape, kind of device and number
of GPUs. For a count of GPUs, or rows of a length, that nobody has run, a measured line is scaled as the formulas of
`altojax.estimates.speed_model` say that it changes; where nothing of a base is known, they are scaled by how far other
bases of the same kind of device were from them. A wrong guess is corrected as soon as the task itself runs, so nothing
is run ahead only to be measured: that would load and compile what the task must load and compile again.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import pydantic

from altojax.cluster.scheduling.resources.job import TaskFamily
from altojax.config.tune_config import TuneConfig
from altojax.device.auto_mesh import WHOLE
from altojax.device.batch import CPU_TILE, DEVICE_TILE
from altojax.estimates.memory_model import base_of
from altojax.estimates.speed_model import AdapterLoad as Load
from altojax.estimates.speed_model import ClusterModel, gathered_step_s
from altojax.run.prepare import CPU_SLOTS, DEVICE_SLOTS, PreparedBase, PreparedRun
from jaxrun.config.config import StrictModel
from jaxrun.store.journal import Journal
from jaxrun.store.records import RECORD_BYTES

CPU = "cpu"
_H100 = ClusterModel(
    peak=989e12,
    mfu=0.5,
    half_tokens=148,
    memory_bytes=80 * 10**9,
    head_bytes=80 * 10**9 // 64,
    node=8,
    within=134e9,
    across=50e9,
    hidden=0.25,
)
"""As in docs/measured/capacity.md. Of other GPUs the ratios between counts are taken from it, the rest is measured."""
_TWO_CORES = replace(_H100, peak=2.8e11, half_tokens=16, node=1024, within=1e10, across=1e10, hidden=1.0)
"""140 GFLOP/s, as a plain product reaches on two cores (docs/measured/log.md)."""
_SPAN = 8
"""Two predictions, of steps of one and of so many batches a GPU, make a line."""


class Profile(StrictModel):
    """One measurement.

    Attributes:
        base: Which model, and how it is computed.
        length: Tokens of a row, on average.
        rank: Largest rank.
        device: Kind of GPU.
        gpus: That worked together.
        step_s: Seconds of a step whatever rides along; None where it could not be estimated apart.
        sample_s: Seconds more for each sample; likewise.
        mean_samples: Samples of a step, on average.
        mean_s: Seconds of a step, on average.
        predicted_s: What was predicted of such a step where nothing was known.
        overhead: Seconds of evaluation for each second of training.
        setup_s: Seconds from the start of a run to its first step.
        most_tokens: Tokens of a step that a GPU has room for.
        samples: That were measured.
        tenant: Whose run measured it; nothing that is expected of another tenant's rests on it.
    """

    base: str
    length: int
    rank: int
    device: Annotated[str, pydantic.Field(pattern=r"^[^\p{C}]{1,100}$")]
    gpus: int
    step_s: float | None
    sample_s: float | None
    mean_samples: float
    mean_s: float
    predicted_s: float
    overhead: float
    setup_s: float
    most_tokens: int
    samples: int
    tenant: str = ""

    @property
    def key(self) -> str:
        """Names what was measured; a later measurement of the same replaces this one."""
        return f"{self.tenant}|{self.base}|{self.length}|{self.rank}|{self.device}|{self.gpus}"


@dataclass(frozen=True)
class BaseWorkload:
    """The trials of a task that share one base.

    Attributes:
        base: As in `Profile`.
        load: What a trial brings to a step.
        slots: Trials that train at once, as the config says it; None is as many as are useful.
        samples: Of all schedules together.
    """

    base: str
    load: Load
    slots: int | None
    samples: int


_WORKLOADS: pydantic.TypeAdapter[list[BaseWorkload]] = pydantic.TypeAdapter(list[BaseWorkload])


@dataclass(frozen=True)
class Line:
    """Seconds of a step by its samples, on a number of GPUs."""

    step_s: float
    sample_s: float

    def at(self, samples: float) -> float:
        """Seconds of a step of so many samples."""
        return self.step_s + self.sample_s * samples


@dataclass(frozen=True)
class Estimate:
    """Predicted training of a workload on a number of GPUs.

    Attributes:
        line: Seconds of a step.
        slots: Trials that train at once.
        samples: Of a step with all slots at work.
        lockstep: What it would be if all GPUs had as many as the busiest one, which all wait for.
        overhead: As in `Profile`.
        setup_s: As in `Profile`.
        measured: Whether this very base, shape, device and count were.
    """

    line: Line
    slots: int
    samples: float
    lockstep: float
    overhead: float
    setup_s: float
    measured: bool

    @property
    def speed(self) -> float:
        """Samples a second, evaluation included."""
        return self.samples / (self.line.at(self.lockstep) * (1 + self.overhead))


def workloads_of(config: TuneConfig, prepared: PreparedRun) -> list[BaseWorkload]:
    """Returns what a task trains, by base."""
    return [_workload(config, base) for base in prepared.bases]


def workloads_to_json(workloads: Sequence[BaseWorkload]) -> str:
    """Returns workloads as one line of JSON: who has read a task's data can tell those who have not."""
    return _WORKLOADS.dump_json(list(workloads)).decode()


def workloads_from_json(text: str) -> list[BaseWorkload]:
    """The inverse of `workloads_to_json`.

    Raises:
        pydantic.ValidationError: The text is none.
    """
    return _WORKLOADS.validate_json(text)


def read_profile(run_dir: Path, workloads: Sequence[BaseWorkload]) -> Profile | None:
    """Returns what a run has measured so far of the base it is at; None before its second fetch of losses.

    Args:
        run_dir: The run's folder; the run may be live.
        workloads: Of its task.

    Raises:
        UserError: The folder holds no run.
    """
    with Journal.read(run_dir, most_bytes=RECORD_BYTES) as journal, journal.interpreted():
        clock, starts = journal.get("clock", {}), journal.events("run_start", newest=1)
        pace = clock.get("pace")
        if pace is None or not starts:
            return None
        [device] = re.fullmatch(r"\d+ × (.*)", starts[-1].payload["device"]).groups()  # type: ignore[union-attr]
        workload, count = workloads[clock["base"]], int(clock["devices"])
        mean_samples = pace["samples"] / pace["steps"]
        measured = {
            "step_s": pace["step_s"],
            "sample_s": pace["sample_s"],
            "mean_samples": mean_samples,
            "mean_s": pace["seconds"] / pace["steps"],
            "overhead": clock["evaluation_s"] / clock["training_s"] if clock["training_s"] else 0.0,
            "setup_s": clock["setup_s"],
            "most_tokens": clock["capacity_tokens"],
            "samples": pace["samples"],
        }
    return Profile(
        base=workload.base,
        length=workload.load.length,
        rank=workload.load.rank,
        device=device,
        gpus=count,
        predicted_s=_predicted(workload.load, device, count).at(mean_samples),
        **measured,
    )


def estimate(profiles: Sequence[Profile], workload: BaseWorkload, device: str, gpus: int) -> Estimate:
    """Says how a workload trains on a number of GPUs.

    Args:
        profiles: What is known.
        workload: What is to train.
        device: Kind of GPU, as JAX and the driver's tool name it; where nobody knows yet, an empty text is some GPU.
        gpus: How many.
    """
    load = workload.load
    there = [one for one in profiles if one.device == device]
    same = [one for one in there if one.base == workload.base]
    if same:
        nearest = min(same, key=lambda one: _distance(one, load, gpus))
        line, overhead, setup_s = _scaled(nearest, workload, gpus), nearest.overhead, nearest.setup_s
        room = max(1, nearest.most_tokens // _tokens(load, device))
    else:
        line, bias = _predicted(load, device, gpus), median([one.mean_s / one.predicted_s for one in there] or [1.0])
        line = Line(line.step_s * bias, line.sample_s * bias)
        overhead = median([one.overhead for one in there] or [0.0])
        setup_s = median([one.setup_s for one in there] or [0.0])
        room = load.trials
    slots = _slots(workload, device, gpus)
    busiest = min(-(-min(slots, load.trials) // gpus), room)
    return Estimate(
        line=line,
        slots=slots,
        samples=float(min(busiest * gpus, load.trials) * load.rows),
        lockstep=float(busiest * gpus * load.rows),
        overhead=overhead,
        setup_s=setup_s,
        measured=bool(same) and _distance(nearest, load, gpus) == (0.0, 0.0, 0),
    )


def speeds(
    profiles: Sequence[Profile], workloads: Sequence[BaseWorkload], device: str, widths: Sequence[int]
) -> dict[int, float]:
    """Returns samples a second of a task by count of GPUs, over all its bases, which train one after the other."""
    found = {}
    for gpus in widths:
        seconds = sum(one.samples / estimate(profiles, one, device, gpus).speed for one in workloads)
        found[gpus] = sum(one.samples for one in workloads) / seconds
    return found


def family_of(
    profiles: Sequence[Profile], workload: BaseWorkload, device: str, widths: Sequence[int], key: str
) -> TaskFamily:
    """Returns the facts that decide whether a task of one base gains by sharing an executor.

    Args:
        profiles: What is known.
        workload: The task's only one.
        device: Kind of GPU.
        widths: Counts of GPUs that it can use.
        key: Names all that tasks must have in common.
    """
    found = {gpus: estimate(profiles, workload, device, gpus) for gpus in widths}
    return TaskFamily(
        key=key,
        trials=workload.load.trials,
        batch=workload.load.rows,
        slots={gpus: one.slots for gpus, one in found.items()},
        step_s={gpus: one.line.step_s for gpus, one in found.items()},
        sample_s={gpus: one.line.sample_s for gpus, one in found.items()},
    )


def _workload(config: TuneConfig, base: PreparedBase) -> BaseWorkload:
    spec, trials = base.spec, base.trials
    loads = [trial.load for trial in trials]
    # Rows of a load are samples, such as pairs, whose length is that of all their rows.
    rows, tokens = sum(load.rows // load.group for load in loads), sum(load.text_tokens for load in loads)
    name = f"{spec.model_name_or_path} {spec.quantize or spec.dtype} {spec.remat} {spec.scan_layers} {spec.kernels}"
    load = Load(
        config=base.config,
        rank=max(trial.config.lora_rank for trial in base.at_largest),
        keys=tuple(base.projections()),
        rows=max(1, round(rows / len(trials))),
        length=max(1, round(tokens / rows)),
        trials=len(trials),
    )
    return BaseWorkload(name, load, config.slots, sum(trial.stream.total_samples for trial in trials))


def _slots(workload: BaseWorkload, device: str, gpus: int) -> int:
    """Trials at once where every GPU has slots of its own; as `altojax.run.load_base.useful_slots`."""
    limit = CPU_SLOTS if device == CPU else DEVICE_SLOTS * gpus
    return -(-min(workload.slots or limit, workload.load.trials) // gpus) * gpus


def _predicted(load: Load, device: str, gpus: int) -> Line:
    """The line through two predicted steps of every GPU: of one trial's batch, and of `_SPAN` of them.

    A base that is small for a GPU is whole on each, so that nothing is gathered (`altojax.device.auto_mesh`).
    """
    cluster = _TWO_CORES if device == CPU else _H100
    sharers = 1 if base_of(load.config).total <= WHOLE * cluster.memory_bytes else gpus
    few, many = (gathered_step_s(load, cluster, sharers, "none", count * _tokens(load, device)) for count in (1, _SPAN))
    sample_s = (many - few) / ((_SPAN - 1) * load.rows * gpus)
    return Line(few - sample_s * load.rows * gpus, sample_s)


def _tokens(load: Load, device: str) -> int:
    """Tokens that a device computes for a trial's batch, whose texts share its tiles."""
    tile = CPU_TILE if device == CPU else DEVICE_TILE
    return -(-load.rows * load.length // tile) * tile


def _measured(profile: Profile, predicted: Line) -> Line:
    """The line of a measurement; where its parts could not be estimated apart, a prediction scaled to it."""
    if profile.step_s is not None and profile.sample_s is not None:
        return Line(profile.step_s, profile.sample_s)
    factor = profile.mean_s / predicted.at(profile.mean_samples)
    return Line(predicted.step_s * factor, predicted.sample_s * factor)


def _scaled(profile: Profile, workload: BaseWorkload, gpus: int) -> Line:
    """A measured line, for another length of rows or count of GPUs changed as predictions do."""
    before = _predicted(replace(workload.load, length=profile.length), profile.device, profile.gpus)
    after = _predicted(workload.load, profile.device, gpus)
    line = _measured(profile, before)
    return Line(line.step_s * after.step_s / before.step_s, line.sample_s * after.sample_s / before.sample_s)


def _distance(profile: Profile, load: Load, gpus: int) -> tuple[float, float, int]:
    """The distance of a measurement from a load; rows' length counts most, then GPUs, by their ratios."""
    length, count = abs(math.log(profile.length / load.length)), abs(math.log(profile.gpus / gpus))
    return length, count, abs(profile.rank - load.rank)
