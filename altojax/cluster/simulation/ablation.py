"""The ablation of scheduling, batching and early exit, alone and together (ALTO, "Ablation")."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.play import play
from altojax.cluster.simulation.workload import Workload


@dataclass(frozen=True)
class Combination:
    """One row of the ablation.

    Attributes:
        scheduling: Whether our policy schedules, or what stands for none.
        batching: Whether trials share a base, or train one at a time.
        early_exit: Whether trials are ended early.
        makespan_s: From the first arrival to the last end.
    """

    scheduling: bool
    batching: bool
    early_exit: bool
    makespan_s: float


def ablate(workload: Workload, folder: Path) -> list[Combination]:
    """Plays a workload with and without each of the three.

    Args:
        workload: Its `ablation` is the policy that stands for no scheduling.
        folder: Where it lies.

    Raises:
        UserError: A task without the speeds of one trial at a time.
    """
    found = []
    for scheduling, batching, early_exit in product((False, True), repeat=3):
        one = workload.model_copy(update={"batching": batching, "early_exit": early_exit})
        plan = workload.policy.plan if scheduling else workload.ablation
        played = play(one, arrivals(one, folder), workload.policy.model_copy(update={"plan": plan}), 0.0)
        found.append(Combination(scheduling, batching, early_exit, played.measures.makespan_s))
    return sorted(found, key=lambda one: -one.makespan_s)
