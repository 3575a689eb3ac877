"""Grants of a tenant: what its tasks may read, write and run, from the operator's file."""

from pathlib import Path
from typing import Annotated

import pydantic

from jaxrun.config.config import StrictModel


def _absolute(path: str) -> str:
    if not Path(path).is_absolute() or ".." in path.split("/"):
        raise ValueError(f"'{path}', expected an absolute path without '..'")
    return path.rstrip("/") or "/"


Folder = Annotated[str, pydantic.AfterValidator(_absolute)]


class Roots(StrictModel):
    """Folders beneath which all paths of a tenant's tasks lie.

    Attributes:
        read: What its tasks may read: data, base models, chat templates.
        write: Where its tasks may write; they may read there, too.
    """

    read: list[Folder] = pydantic.Field(default=[])
    write: list[Folder] = pydantic.Field(min_length=1)


class Grants(StrictModel):
    """Permissions of a tenant's tasks.

    Attributes:
        roots: Folders beneath which all their paths lie; null is wherever the user as whom they run may read and write.
        trust_remote_code: Whether a submission may ask to run code that comes with a model.
        metric_code: Whether a submission may name code or a command of its own that scores answers.
    """

    roots: Roots | None = None
    trust_remote_code: bool = False
    metric_code: bool = False
