"""The scheduling policy: the `policy` section of an orchestrator or a simulation."""

from typing import Annotated, Literal

import pydantic

from altojax.cluster.scheduling.resources.tenants import Tenant
from jaxrun.config.config import StrictModel

Seconds = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Planner = Literal["portfolio", "fifo", "backfill", "lpt", "one_gpu", "one_at_a_time"]


_ANYBODY = Tenant()


class Policy(StrictModel):
    """The scheduling policy.

    Attributes:
        plan: ``portfolio`` plans to finish soonest; the others are what it is compared with (`baselines.py`).
        tenants: Whose tasks may use how much; others have weight 1 and no quota.
        patience_s: Seconds after which a waiting task gets GPUs held for it; null is never.
        retries: How often a task that failed by its own fault is tried again.
        node_retries: How often a task is tried again that a node took down with it.
        moves: Whether a running task may be restarted on GPUs that nobody else can use.
        park_s: Seconds that a task takes to save and stop.
        resume_s: Seconds more than its set-up that it takes to start from a checkpoint.
        move_gain: A move must save this many times what it costs.
        effort: Tasks placed while looking for a better plan, for each change since the last; 16,000 take a second.
        merge: Whether waiting tasks of one family may become one.
        cp_sat_s: Deterministic seconds that CP-SAT may take to improve a plan, where it is installed and few tasks
            wait; 0 is never.
    """

    plan: Planner = "portfolio"
    tenants: dict[str, Tenant] = pydantic.Field(default_factory=dict)
    patience_s: Seconds | None = 172_800.0
    retries: Annotated[int, pydantic.Field(ge=0)] = 2
    node_retries: Annotated[int, pydantic.Field(ge=0)] = 20
    moves: bool = True
    park_s: Seconds = 30.0
    resume_s: Seconds = 30.0
    move_gain: Annotated[float, pydantic.Field(gt=1, allow_inf_nan=False)] = 3.0
    effort: Annotated[int, pydantic.Field(ge=0)] = 500
    merge: bool = True
    cp_sat_s: Seconds = 0.5

    def tenant(self, name: str) -> Tenant:
        """The section of a tenant, or the default one."""
        return self.tenants.get(name, _ANYBODY)
