"""Events and decisions of a scheduler as plain data: the decision log of an orchestrator or a simulation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import pydantic_core

from altojax.cluster.scheduling.resources.job import LEAST, MOST, Job
from altojax.cluster.scheduling.resources.nodes import Gpus


@dataclass(frozen=True)
class _OfJob:
    at_s: float
    job: str


@dataclass(frozen=True)
class _OfAttempt(_OfJob):
    attempt: int


@dataclass(frozen=True)
class Submitted:
    """A task joined the queue."""

    at_s: float
    job: Job
    kind: Literal["submitted"] = "submitted"


@dataclass(frozen=True)
class Started(_OfAttempt):
    """An attempt began to train: it was set up."""

    kind: Literal["started"] = "started"


@dataclass(frozen=True)
class Progressed(_OfJob):
    """A running or waiting task is expected to need other samples than before, or runs at another speed.

    Attributes:
        samples: Samples that it is expected to need from now on.
        speeds: New estimates, GPUs -> samples a second; counts that are not named keep theirs.
    """

    samples: float
    speeds: Mapping[int, float]
    kind: Literal["progressed"] = "progressed"


@dataclass(frozen=True)
class Ended(_OfAttempt):
    """An attempt came to its end; the task is done."""

    kind: Literal["ended"] = "ended"


@dataclass(frozen=True)
class Halted(_OfAttempt):
    """An attempt saved and stopped, as requested."""

    samples: float
    kind: Literal["halted"] = "halted"


@dataclass(frozen=True)
class Failed(_OfAttempt):
    """An attempt died.

    Attributes:
        reason: One line.
        samples: Samples that the task is expected to need from its last checkpoint on.
        blame: Whose failure it is: what a task does wrong is retried a few times, what a node does more often.
    """

    reason: str
    samples: float
    blame: Literal["task", "node"] = "task"
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class UserAsked(_OfJob):
    """A user asked for a task to be cancelled, paused or resumed."""

    wish: Literal["cancel", "pause", "resume"]
    kind: Literal["asked"] = "asked"


@dataclass(frozen=True)
class NodeChanged:
    """A node came, went (no GPUs) or changed; attempts on GPUs that are gone are reported as failed beside it."""

    at_s: float
    node: str
    gpus: int
    kind: Literal["node"] = "node"


@dataclass(frozen=True)
class Start(_OfAttempt):
    """Start an attempt of a task.

    Attributes:
        attempt: Counts from 1; also the fencing token: what an older attempt says no longer counts.
        gpus: Where.
        until_s: When it is expected to end.
        why: One line.
    """

    gpus: Gpus
    until_s: float
    why: str
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class Stop(_OfAttempt):
    """Tell an attempt to save and stop; its GPUs are free once it has halted, ended or failed."""

    why: Literal["cancelled", "paused", "moved"]
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True)
class GiveUp(_OfJob):
    """A task is not tried again."""

    reason: str
    kind: Literal["give_up"] = "give_up"


@dataclass(frozen=True)
class Merge:
    """Tasks that wait become one, whose executor they share."""

    at_s: float
    jobs: tuple[str, ...]
    into: Job
    why: str
    kind: Literal["merge"] = "merge"


@dataclass(frozen=True)
class PlanMade:
    """The order and widths of waiting tasks; dispatch follows them until the next plan.

    Attributes:
        rule: What made it: a list rule, or cp-sat.
        order: Names of waiting tasks, first to start first.
        widths: GPUs of each.
        makespan_s: When the last of all tasks is to end, from now.
        bound_s: No schedule ends sooner: the energy bound.
        gpus: Of each task, where it is to run; empty where a task takes whatever fits it.
    """

    at_s: float
    rule: str
    order: tuple[str, ...]
    widths: tuple[int, ...]
    makespan_s: float
    bound_s: float
    gpus: tuple[Gpus, ...] = ()
    kind: Literal["plan"] = "plan"


@dataclass(frozen=True)
class Hold(_OfJob):
    """GPUs are kept for a task, free ones and others once they come free; nothing else starts there until it has.

    Attributes:
        gpus: Which.
        until_s: When all of them are expected to be free.
        why: One line.
    """

    gpus: Gpus
    until_s: float
    why: str
    kind: Literal["hold"] = "hold"


SchedulerEvent = Submitted | Started | Progressed | Ended | Halted | Failed | UserAsked | NodeChanged
Decision = PlanMade | Merge | Hold | Start | Stop | GiveUp
Record = SchedulerEvent | Decision

_RECORD: pydantic.TypeAdapter[Record] = pydantic.TypeAdapter(Annotated[Record, pydantic.Field(discriminator="kind")])


def to_json(record: Record) -> str:
    """Returns a record as one line of JSON."""
    return _RECORD.dump_json(record).decode()


def is_sound(event: SchedulerEvent) -> bool:
    """Whether an event can be stored, and its numbers planned with: finite, and such as a task may have."""
    try:
        if from_json(to_json(event)) != event:
            return False
    except (pydantic.ValidationError, pydantic_core.PydanticSerializationError):
        return False
    match event:
        case Submitted():
            return event.job.is_sound
        case Progressed():
            return 0 <= event.samples <= MOST and all(LEAST <= speed <= MOST for speed in event.speeds.values())
        case Halted() | Failed():
            return 0 <= event.samples <= MOST
        case _:
            return True


def from_json(text: str) -> Record:
    """The inverse of `to_json`.

    Raises:
        pydantic.ValidationError: The text is no record.
    """
    return _RECORD.validate_json(text, strict=False)
