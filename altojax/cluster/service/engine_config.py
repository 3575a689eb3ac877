"""The `engine` section of what is served: where tasks run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from altojax.cluster.engines.engine import Engine
from altojax.cluster.engines.local import GRACE_S, WORKER, LocalEngine
from altojax.cluster.engines.slurm_commands import SlurmOptions
from jaxrun.config.config import StrictModel
from jaxrun.process.errors import nearest


class Workers(StrictModel):
    """Options of engines that start processes.

    Attributes:
        worker: Command that is started with a task's folder and an attempt's number; null is altojax's own.
        grace_s: Seconds that a task has to save and stop before it is ended by force.
    """

    worker: Annotated[list[str], pydantic.Field(min_length=1)] | None = None
    grace_s: Annotated[float, pydantic.Field(gt=0)] = GRACE_S

    def common(self, queue: Path) -> dict[str, Any]:
        """Returns what such an engine is made with; compiled programs are kept below the queue's folder."""
        return {"command": self.worker or WORKER, "cache": queue / "xla", "grace_s": self.grace_s}


class LocalSection(Workers):
    """Processes of this host.

    Attributes:
        kind: ``local``.
        gpus: How many to use; null is all. A host without any simulates so many on its CPU, or one.
    """

    kind: Literal["local"] = "local"
    gpus: Annotated[int, pydantic.Field(ge=1)] | None = None


class HereSection(StrictModel):
    """This process, one task at a time on all of its devices.

    Attributes:
        kind: ``here``.
    """

    kind: Literal["here"]


class SlurmSection(SlurmOptions, Workers):
    """Jobs of a Slurm cluster.

    Attributes:
        kind: ``slurm``.
    """

    kind: Literal["slurm"]


class RaySection(Workers):
    """Actors of a Ray cluster.

    Attributes:
        kind: ``ray``.
        address: Of the cluster, as `ray.init` takes it.
    """

    kind: Literal["ray"]
    address: str = "auto"


EngineSection = Annotated[LocalSection | HereSection | SlurmSection | RaySection, pydantic.Discriminator("kind")]

KINDS = ("local", "here", "slurm", "ray")


def written_out(given: Any) -> Any:
    """Lets ``engine: slurm`` stand for ``engine: {kind: slurm}``, and no kind for ``local``."""
    section = {"kind": given} if isinstance(given, str) else given
    if not isinstance(section, dict):
        return section
    kind = section.get("kind", "local")
    if kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    return {**section, "kind": kind}


def make_engine(section: LocalSection | HereSection | SlurmSection | RaySection, queue: Path) -> Engine:
    """Returns the engine of a section.

    Args:
        section: As configured.
        queue: The queue's folder.

    Raises:
        UserError: It cannot be had here.
    """
    match section:
        case LocalSection():
            return LocalEngine(gpus=section.gpus, **section.common(queue))
        case SlurmSection():
            from altojax.cluster.engines.slurm import SlurmEngine

            own = {name: getattr(section, name) for name in SlurmOptions.model_fields}
            return SlurmEngine(SlurmOptions(**own), **section.common(queue))
        case RaySection():
            from altojax.cluster.engines.ray_engine import RayEngine

            return RayEngine(address=section.address, **section.common(queue))
        case HereSection():
            from altojax.cluster.engines.in_process import HereEngine

            return HereEngine()
