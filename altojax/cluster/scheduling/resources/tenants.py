"""Tenants: weighted fair sharing by virtual time, and quotas.

A tenant's virtual time is the GPU-seconds charged to it divided by its weight; whoever has the least goes first
(start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996). Who comes back after a while starts at the virtual time
at which the others are: nobody saves up by being idle.
"""

from collections.abc import Mapping
from typing import Annotated

import pydantic

from jaxrun.config.config import StrictModel


class Tenant(StrictModel):
    """A tenant's share.

    Attributes:
        weight: GPU time that it gets beside the others while all of them have tasks waiting.
        quota: GPUs that it may hold at a time; null is all.
    """

    weight: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 1.0
    quota: Annotated[int, pydantic.Field(gt=0)] | None = None


class FairShares:
    """GPU time that tenants have used, and GPUs they hold.

    An attempt is charged for as long as it is expected to take when it starts, and the difference when it has ended, so
    that several starts at one moment are already shared fairly.
    """

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = tenants
        self._virtual_s: dict[str, float] = {}
        self._tasks: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._gpu_s: dict[str, float] = {}
        self._now_virtual_s = 0.0

    def join(self, tenant: str) -> None:
        """A task of a tenant begins to wait."""
        if not self._tasks.get(tenant):
            self._virtual_s[tenant] = max(self._virtual_s.get(tenant, 0.0), self._now_virtual_s)
        self._tasks[tenant] = self._tasks.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """A task that had joined neither waits nor runs any more."""
        self._tasks[tenant] -= 1

    def take(self, tenant: str, gpus: int, expected_s: float) -> None:
        """An attempt starts."""
        self._now_virtual_s = max(self._now_virtual_s, self.virtual_s(tenant))
        self.reserve(tenant, gpus)
        self._charge(tenant, gpus * expected_s)

    def give(self, tenant: str, gpus: int, expected_s: float, ran_s: float) -> None:
        """An attempt that was taken for `expected_s` is over after `ran_s`."""
        self.reserve(tenant, -gpus)
        self._charge(tenant, gpus * (ran_s - expected_s))
        self._gpu_s[tenant] = self._gpu_s.get(tenant, 0.0) + gpus * ran_s

    def reserve(self, tenant: str, gpus: int) -> None:
        """Counts GPUs, or fewer where negative, as held by a tenant."""
        self._held[tenant] = self._held.get(tenant, 0) + gpus

    def room(self, tenant: str) -> float:
        """GPUs that a tenant's quota leaves it."""
        quota = self._tenants[tenant].quota if tenant in self._tenants else None
        return float("inf") if quota is None else quota - self._held.get(tenant, 0)

    def virtual_s(self, tenant: str) -> float:
        """GPU-seconds charged to a tenant, over its weight; the least goes first."""
        return self._virtual_s.get(tenant, 0.0)

    def held(self, tenant: str) -> int:
        """GPUs that a tenant's tasks are on, or that are held for them."""
        return self._held.get(tenant, 0)

    def gpu_s(self, tenant: str) -> float:
        """GPU-seconds of a tenant's attempts that are over."""
        return self._gpu_s.get(tenant, 0.0)

    def copy(self) -> "FairShares":
        """Returns shares that change on their own."""
        other = FairShares(self._tenants)
        other._virtual_s, other._tasks = dict(self._virtual_s), dict(self._tasks)
        other._held, other._gpu_s = dict(self._held), dict(self._gpu_s)
        other._now_virtual_s = self._now_virtual_s
        return other

    def _charge(self, tenant: str, gpu_s: float) -> None:
        weight = self._tenants[tenant].weight if tenant in self._tenants else 1.0
        self._virtual_s[tenant] = self._virtual_s.get(tenant, 0.0) + gpu_s / weight
