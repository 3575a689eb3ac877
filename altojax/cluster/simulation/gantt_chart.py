"""A simulation as a Gantt chart: GPUs by node, tasks over time."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from altojax.cluster.scheduling.resources.nodes import neighbours
from altojax.cluster.simulation.arrivals import Arrival
from altojax.cluster.simulation.metrics import unit_of
from altojax.cluster.simulation.play import Played
from altojax.cluster.simulation.simulated_cluster import SimulatedRun
from altojax.cluster.simulation.workload import Workload
from jaxrun.plots.timeline import Span, timeline


def draw(workload: Workload, tasks: Sequence[Arrival], played: Played) -> Figure:
    """Draws what ran where; attempts that did not end their task are faint.

    Args:
        workload: As loaded.
        tasks: Its tasks.
        played: What a policy made of them.
    """
    groups = {one.job.name: one.group for one in tasks}
    first_s = tasks[0].at_s
    unit_s, unit = unit_of(played.measures.makespan_s)
    first_lane, lanes = {}, 0
    for node, gpus in workload.cluster.items():
        first_lane[node], lanes = lanes, lanes + gpus
    spans = [
        Span(
            lane=first_lane[node] + first,
            lanes=count,
            start=(run.start_s - first_s) / unit_s,
            end=(run.end_s - first_s) / unit_s,
            label=run.job,
            group=groups.get(run.job, "merged") if len(set(groups.values())) > 1 else _width(run),
            faint=run.outcome != "ended",
        )
        for run in played.runs
        for node, indices in run.gpus.items()
        for first, count in neighbours(indices)
    ]
    got = played.measures
    title = f"{len(tasks):,} tasks on {lanes:,} GPUs, {played.policy}: {got.gap:.1%} above the energy bound"
    return timeline(
        spans,
        list(workload.cluster.items()),
        title=title,
        x_label=f"time ({unit})",
        mark=("energy bound", got.bound_s / unit_s),
        width_in=9.6,
    )


def _width(run: SimulatedRun) -> str:
    """The label of a block where all tasks are of one group: its width."""
    return f"{run.width} GPU{'' if run.width == 1 else 's'}"
