"""``altojax simulate``: our scheduler and baselines on a simulated cluster."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic

from altojax.cluster.scheduling.admission import refusal
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.simulation.ablation import Combination, ablate
from altojax.cluster.simulation.arrivals import Arrival, arrivals
from altojax.cluster.simulation.metrics import hindsight_bound_s, unit_of
from altojax.cluster.simulation.play import Played, play
from altojax.cluster.simulation.workload import Workload
from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.settings import take_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted
from jaxrun.terminal.tables import print_table


class SimulateSettings(StrictModel):
    """Settings of ``altojax simulate`` beside the keys of its workload.

    Attributes:
        out: Write the results here as JSON.
        plot: Draw who ran where and when, a PNG.
    """

    out: str | None = None
    plot: str | None = None

    @pydantic.field_validator("plot")
    @classmethod
    def _is_a_picture(cls, plot: str | None) -> str | None:
        if plot is not None and not plot.endswith(".png"):
            raise ValueError("expected a name that ends in .png")
        return plot


def simulate(workload: Workload, tasks: Sequence[Arrival]) -> list[Played]:
    """Plays a workload under our policy and each baseline's.

    Raises:
        UserError: A task that could never run.
    """
    cluster = Cluster(dict(workload.cluster))
    for one in tasks:
        refused = refusal(one.job, cluster, workload.policy)
        if refused is not None:
            raise UserError(refused)
    bound_s = hindsight_bound_s(tasks, cluster)
    return [play(workload, tasks, policy, bound_s) for policy in workload.policies().values()]


def run(args: Args) -> int:
    """Runs ``altojax simulate WORKLOAD key=value ...``."""
    settings, overrides = take_settings(SimulateSettings, args.overrides)
    path = Path(args["workload"])
    workload = load_config(Workload, path, overrides)
    tasks = arrivals(workload, path.parent)
    gpus, nodes = counted(sum(workload.cluster.values()), "GPU"), counted(len(workload.cluster), "node")
    print(f"{counted(len(tasks), 'task')} on {gpus} of {nodes}, by {path.name}\n")
    played = simulate(workload, tasks)
    _print(played)
    combinations = ablate(workload, path.parent) if workload.ablation is not None else []
    if combinations:
        print()
        _print_ablation(combinations)
    if settings.out is not None:
        write_atomic(settings.out, json.dumps(_as_json(workload, played, combinations), indent=2) + "\n")
    if settings.plot is not None:
        from altojax.cluster.simulation.gantt_chart import draw  # matplotlib takes long to import
        from jaxrun.plots.plots import save

        save(draw(workload, tasks, played[0]), settings.plot)
    return 0


def _print(played: Sequence[Played]) -> None:
    ours = played[0].measures
    unit_s, unit = unit_of(ours.makespan_s)
    times = (f"makespan, {unit}", "of ours", "above bound", f"mean, {unit}", f"p95, {unit}")
    columns = ("scheduler", *times, "used", "starts", "given up", "simulated in")
    rows = [
        (
            one.policy,
            f"{one.measures.makespan_s / unit_s:.2f}",
            f"{one.measures.makespan_s / ours.makespan_s:.2f}" if ours.makespan_s else "-",
            f"{one.measures.gap:.1%}",
            f"{one.measures.mean_s / unit_s:.2f}",
            f"{one.measures.p95_s / unit_s:.2f}",
            f"{one.measures.utilisation:.1%}",
            f"{one.measures.attempts:,}",
            f"{one.measures.gave_up:,}",
            f"{one.took_s:.1f} s",
        )
        for one in played
    ]
    print_table(columns, rows, right=range(1, len(columns)))
    print(f"\nbound: with hindsight, no scheduler ends all tasks before {ours.bound_s / unit_s:.2f} {unit}")


def _print_ablation(combinations: Sequence[Combination]) -> None:
    base = next(one for one in combinations if one.batching and not one.scheduling and not one.early_exit)
    unit_s, unit = unit_of(base.makespan_s)
    rows = [
        (
            *("yes" if on else "-" for on in (one.scheduling, one.batching, one.early_exit)),
            f"{one.makespan_s / unit_s:.2f}",
            f"{base.makespan_s / one.makespan_s:.2f}",
        )
        for one in combinations
    ]
    columns = ("scheduling", "batching", "early exit", f"makespan, {unit}", "times batching alone")
    print_table(columns, rows, right=(3, 4))


def _as_json(workload: Workload, played: Sequence[Played], combinations: Sequence[Combination]) -> Mapping[str, Any]:
    return {
        "cluster": workload.cluster,
        "policies": {
            one.policy: {**asdict(one.measures), "gap": one.measures.gap, "took_s": one.took_s, "records": one.records}
            for one in played
        },
        "ablation": [asdict(one) for one in combinations],
        "runs": {
            one.policy: [
                {"job": run.job, "attempt": run.attempt, "gpus": run.gpus, "start_s": run.start_s, "end_s": run.end_s,
                 "outcome": run.outcome}
                for run in one.runs
            ]
            for one in played[:1]
        },
    }  # fmt: skip


VERB = Verb(
    name="simulate",
    help="Play a workload on a simulated cluster: makespan, completion and use of our scheduler and of others.",
    run=run,
    positionals=(Positional("workload", "a YAML file such as configs/simulate/forty.yaml"),),
    config=lambda: Workload,
    settings=SimulateSettings,
    examples=(
        "altojax simulate configs/simulate/forty.yaml",
        "altojax simulate configs/simulate/forty.yaml cluster=4x8 policy.cp_sat_s=0 out=forty.json plot=forty.png",
    ),
)
