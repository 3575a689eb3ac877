"""The `engine` section of what is served: where tasks run."""

from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, override

import pydantic
from pydantic.fields import FieldInfo

from altojax.cluster.engines.engine import Engine
from altojax.cluster.engines.local import GRACE_S, WORKER, LocalEngine
from altojax.cluster.engines.slurm_commands import SlurmOptions
from jaxrun.config.config import StrictModel
from jaxrun.process.errors import nearest

REGISTERED: dict[str, type["Section"]] = {}
"""Sections of the engines by their kind, in the order in which help has them."""
_CHOOSERS: list[type[StrictModel]] = []


class Section(StrictModel):
    """The section of one engine: its keys, and how it is made of them.

    A subclass has a ``kind: Literal[...]`` that names it, and imports its engine where that is made, so that others do
    not need its library.

    Attributes:
        kind: Names it.
    """

    kind: str

    def engine(self, queue: Path) -> Engine:
        """Returns the engine.

        Args:
            queue: The queue's folder.

        Raises:
            UserError: It cannot be had here.
        """
        raise NotImplementedError


class Workers(Section):
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

    @override
    def engine(self, queue: Path) -> Engine:
        return LocalEngine(gpus=self.gpus, **self.common(queue))


class HereSection(Section):
    """This process, one task at a time on all of its devices.

    Attributes:
        kind: ``here``.
    """

    kind: Literal["here"]

    @override
    def engine(self, queue: Path) -> Engine:
        from altojax.cluster.engines.in_process import HereEngine

        return HereEngine()


class SlurmSection(SlurmOptions, Workers):
    """Jobs of a Slurm cluster.

    Attributes:
        kind: ``slurm``.
    """

    kind: Literal["slurm"]

    @override
    def engine(self, queue: Path) -> Engine:
        from altojax.cluster.engines.slurm import SlurmEngine

        own = {name: getattr(self, name) for name in SlurmOptions.model_fields}
        return SlurmEngine(SlurmOptions(**own), **self.common(queue))


class RaySection(Workers):
    """Actors of a Ray cluster.

    Attributes:
        kind: ``ray``.
        address: Of the cluster, as `ray.init` takes it.
    """

    kind: Literal["ray"]
    address: str = "auto"

    @override
    def engine(self, queue: Path) -> Engine:
        from altojax.cluster.engines.ray_engine import RayEngine

        return RayEngine(address=self.address, **self.common(queue))


def register(*sections: type[Section]) -> None:
    """Makes engines known by the kinds of their sections: to ``engine`` of what is served, and to help.

    Registering a section again replaces it, as in a notebook.

    Raises:
        ValueError: The kind is another section's.
    """
    for section in sections:
        [kind] = get_args(section.model_fields["kind"].annotation)
        before = REGISTERED.get(kind)
        if before is not None and (before.__module__, before.__qualname__) != (
            section.__module__,
            section.__qualname__,
        ):
            raise ValueError(f"{section.__qualname__}: its kind '{kind}' is that of {before.__qualname__} already")
        REGISTERED[kind] = section
    for config in _CHOOSERS:
        _offer(config)


def chooses_engine[Config: StrictModel](config: type[Config]) -> type[Config]:
    """Makes ``engine`` of a config the section of any engine that is registered, also of those that are later."""
    _CHOOSERS.append(config)
    _offer(config)
    return config


def _offer(config: type[StrictModel]) -> None:
    kinds: Any = Union[*REGISTERED.values()]
    found = FieldInfo(annotation=kinds, default=LocalSection())
    found.metadata = [pydantic.Discriminator("kind"), pydantic.BeforeValidator(_written_out)]
    config.model_fields["engine"] = found
    config.model_rebuild(force=True)


def _written_out(given: Any) -> Any:
    """Lets ``engine: slurm`` stand for ``engine: {kind: slurm}``, and no kind for ``local``."""
    section = {"kind": given} if isinstance(given, str) else given
    if not isinstance(section, dict):
        return section
    kind = section.get("kind", "local")
    if not isinstance(kind, str) or kind not in REGISTERED:
        raise ValueError(f"expected one of {', '.join(REGISTERED)}{nearest(str(kind), REGISTERED)}")
    return {**section, "kind": kind}


register(LocalSection, HereSection, SlurmSection, RaySection)
