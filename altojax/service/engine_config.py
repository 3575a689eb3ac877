"""The `engine` section of what is served: where tasks run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from altojax.engines.engine import Engine
from altojax.engines.local import GRACE_S, WORKER, LocalEngine
from harness.config import StrictModel


class LocalSection(StrictModel):
    """Processes of this host.

    Attributes:
        kind: ``local``.
        gpus: How many to use; null is all. A host without any pretends so many on its CPU, or one.
        worker: Command that is started with a task's folder and an attempt's number.
        grace_s: Seconds that a task has to save and stop before it is ended by force.
    """

    kind: Literal["local"] = "local"
    gpus: Annotated[int, pydantic.Field(ge=1)] | None = None
    worker: Annotated[list[str], pydantic.Field(min_length=1)] | None = None
    grace_s: Annotated[float, pydantic.Field(gt=0)] = GRACE_S


EngineSection = LocalSection


def engine_section(given: Any) -> Any:
    """Lets ``engine: local`` stand for ``engine: {kind: local}``."""
    return {"kind": given} if isinstance(given, str) else given


def make_engine(section: EngineSection, queue: Path) -> Engine:
    """Returns the engine of a section.

    Args:
        section: As configured.
        queue: The queue's folder, below which compiled programs are kept.

    Raises:
        UserError: It cannot be had here.
    """
    command = section.worker or WORKER
    return LocalEngine(gpus=section.gpus, command=command, cache=queue / "xla", grace_s=section.grace_s)
