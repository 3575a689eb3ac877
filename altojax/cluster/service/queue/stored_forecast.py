"""The orchestrator's forecast of its tasks, stored for whoever looks at the queue."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pydantic

from altojax.cluster.scheduling.plan_forecast import Expected
from altojax.cluster.scheduling.scheduler import Gap, Scheduler


@pydantic.dataclasses.dataclass(frozen=True)
class Forecast:
    """Expectations at one instant.

    Attributes:
        tasks: Task -> when it starts and ends, and on how many GPUs; seconds since the queue was made.
        makespan_s: Seconds from then to the end of all.
        bound_s: No schedule ends sooner.
    """

    tasks: Mapping[str, Expected]
    makespan_s: float = 0.0
    bound_s: float = 0.0

    @property
    def gap(self) -> float:
        """The makespan's excess over the bound, as a share of it."""
        return Gap(self.makespan_s, self.bound_s).share


_FORECAST: pydantic.TypeAdapter[Forecast] = pydantic.TypeAdapter(Forecast)


def forecast_of(scheduler: Scheduler) -> dict[str, Any]:
    """Returns what a scheduler expects, as JSON data."""
    expected = scheduler.forecast()
    gap = scheduler.gap(expected)
    return asdict(Forecast(expected, gap.makespan_s, gap.bound_s))


def read_forecast(stored: Any) -> Forecast:
    """The inverse of `forecast_of`; nothing is expected where nothing was stored."""
    return Forecast({}) if stored is None else _FORECAST.validate_python(stored)
