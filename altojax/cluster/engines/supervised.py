"""An engine that never raises on behalf of one attempt: what goes wrong becomes that attempt's failure."""

from collections.abc import Callable, Mapping, Sequence

from altojax.cluster.engines.engine import Engine, Order, Report
from altojax.cluster.engines.faults import AttemptKey, Faults, reason_of


class SupervisedEngine:
    """Any engine, with the faults of attempts kept apart. To be used from one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._failed: list[Report] = []
        self._untold: dict[AttemptKey, None] = {}
        self._faults = Faults()

    @property
    def name(self) -> str:
        """The engine's."""
        return self._engine.name

    @property
    def switches_user(self) -> bool:
        """As the engine's."""
        return self._engine.switches_user

    def nodes(self) -> Mapping[str, int]:
        """Nodes of the cluster now -> their GPUs."""
        return self._engine.nodes()

    def start(self, order: Order) -> None:
        """Starts an attempt; whatever keeps it from starting is reported as its failure."""
        self._begin(order, lambda: self._engine.start(order))

    def stop(self, job: str, attempt: int) -> None:
        """Asks an attempt to save and stop; asked again at every `poll` until that could be done."""
        self._untold[job, attempt] = None
        self._tell()

    def poll(self) -> list[Report]:
        """Returns the attempts that ended since the last call.

        Raises:
            UserError: The engine itself cannot be asked.
        """
        self._tell()
        reports = [*self._failed, *self._engine.poll()]
        self._failed = []
        for report in reports:
            self._untold.pop((report.job, report.attempt), None)
            self._faults.forget((report.job, report.attempt))
        return reports

    def adopt(self, orders: Sequence[Order]) -> None:
        """Takes over from an earlier engine, attempt by attempt."""
        for order in orders:
            self._begin(order, lambda order=order: self._engine.adopt([order]))  # type: ignore[misc]

    def close(self) -> None:
        """Lets go of what the engine holds."""
        self._engine.close()

    def _begin(self, order: Order, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            reason = f"cannot be started: {reason_of(error)}"
            self._failed.append(Report(order.job, order.attempt, "failed", reason, "node"))

    def _tell(self) -> None:
        for key in list(self._untold):
            with self._faults.of(key):
                self._engine.stop(*key)
                del self._untold[key]
