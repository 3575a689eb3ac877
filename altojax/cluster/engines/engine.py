"""The interface of engines: start, stop and report attempts of tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from altojax.cluster.scheduling.resources.nodes import Gpus

Outcome = Literal["ended", "halted", "failed"]
Blame = Literal["task", "node"]


@dataclass(frozen=True)
class Order:
    """One attempt of one task.

    Attributes:
        job: Name of the task in the queue.
        attempt: Counts from 1; the fencing token of the attempt.
        folder: The task's folder in the queue's store, seen by every node: ``task.yaml``, ``fence.json`` (the newest
            attempt), ``attempt-N.log`` and, once attempt N has ended, ``attempt-N.json``.
        gpus: Where it runs.
        uid: Number of the user as whom it runs; None is who runs this process.
    """

    job: str
    attempt: int
    folder: Path
    gpus: Gpus
    uid: int | None = None


@dataclass(frozen=True)
class Report:
    """The outcome of an attempt; an engine reports it once.

    Attributes:
        outcome: ``ended``: the task is done. ``halted``: saved and stopped, as told. ``failed``: anything else.
        reason: One line, where it failed, or where it was stopped without saving.
        blame: ``node`` where the task is not at fault: a node lost, a process killed, a job preempted.
    """

    job: str
    attempt: int
    outcome: Outcome
    reason: str = ""
    blame: Blame = "task"


class Engine(Protocol):
    """A place where tasks run. No call waits for a task.

    What an attempt says of itself lies in its folder, so that an orchestrator that was killed learns it when it comes
    back; `adopt` tells an engine which attempts its predecessor had started.

    Attributes:
        name: Names it.
        switches_user: Whether, run by root, it starts an attempt as the user that its order names.
    """

    name: str
    switches_user: bool

    def nodes(self) -> Mapping[str, int]:
        """Nodes of the cluster now -> their GPUs."""
        ...

    def start(self, order: Order) -> None:
        """Starts an attempt; one that cannot start is reported as failed. Starting it a second time does nothing."""
        ...

    def stop(self, job: str, attempt: int) -> None:
        """Tells an attempt to save and stop, and ends it by force when it does not within a minute."""
        ...

    def poll(self) -> list[Report]:
        """Returns the attempts that ended since the last call."""
        ...

    def adopt(self, orders: Sequence[Order]) -> None:
        """Takes over from an earlier engine that was to start these attempts.

        Those that run are watched, those that ended are reported, and those that it had not come to are started.
        """
        ...

    def close(self) -> None:
        """Releases what it holds. Attempts in processes of their own keep running."""
        ...
