"""Checks of a run against what its tenant is granted: at intake, and again by the worker before it reads or writes.

Paths are opened beneath the tenant's roots by descriptor, but what trains opens them by name afterwards. Where tasks
run as their submitters that makes no difference, since the kernel checks each access. Elsewhere who submitted a task
may still exchange a folder between the check and the use.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from altojax.cluster.tenancy.grants import Grants, Roots
from altojax.cluster.tenancy.run_paths import reads_of
from altojax.config.tune_config import MAKES, TuneConfig
from jaxrun.config.config import check_config
from jaxrun.files.beneath import check_no_links, check_tree
from jaxrun.files.foreign_files import read_json
from jaxrun.process.errors import UserError
from jaxrun.store.run_folder import refuse_links

NAME = "roots.json"
"""In a task's folder: the roots of its tenant, for its worker."""
MOST_FILES = 10_000
"""Files that a task may read, counted again wherever it names them again."""


def check_code(config: TuneConfig, tenant: str, grants: Grants) -> None:
    """Refuses to run code that comes with a model, or scores its answers, where the tenant's tasks may not.

    Raises:
        UserError: They may not; the line names the key.
    """
    specs = {"model": config.model} | {f"tasks.{at}.model": task.model for at, task in enumerate(config.tasks)}
    for key, spec in specs.items():
        if spec is not None and spec.trust_remote_code and not grants.trust_remote_code:
            raise UserError(
                f"{key}.trust_remote_code: given true, expected false, or trust_remote_code: true of tenant "
                f"'{tenant}' in the file of who serves"
            )
    if (code := config.metric.code) is not None and not grants.metric_code:
        raise UserError(
            f"metric.{code}: given code of your own, expected none, or metric_code: true of tenant '{tenant}' in the "
            "file of who serves"
        )


def check_paths(config: TuneConfig, roots: Roots) -> None:
    """Refuses a run of which a path leads out of its tenant's roots, through a link or otherwise.

    Folders that are read are looked through; in the run's own folder nothing may be a link.

    Raises:
        UserError: One does, or the run reads too many files; the line names the key.
    """
    seen = 0
    for key, path in reads_of(config).items():
        root, rest = _root_of(key, path, (*roots.read, *roots.write))
        with _named(key, path):
            seen += check_tree(root, rest, MOST_FILES)
            if seen > MOST_FILES:
                raise UserError(
                    f"{path}: with what the task reads beside it more than {MOST_FILES:,} files, expected fewer"
                )
    check_output(config.output_dir, roots)
    with _named("output_dir", config.output_dir):
        refuse_links(Path(config.output_dir), (*MAKES, *(task.name for task in config.tasks)))


def check_output(output_dir: str, roots: Roots) -> None:
    """Refuses a run's folder that does not lie beneath a tenant's roots, or to which a link leads.

    Raises:
        UserError: It does not, or one does.
    """
    root, rest = _root_of("output_dir", output_dir, roots.write)
    with _named("output_dir", output_dir):
        check_no_links(root, rest)


def roots_in(folder: Path) -> Roots | None:
    """Returns the roots that a task's folder says; None where its tenant has none.

    Raises:
        UserError: They cannot be read.
    """
    path = folder / NAME
    return check_config(Roots, read_json(path), str(path)) if path.exists() else None


def _root_of(key: str, path: str, roots: Sequence[str]) -> tuple[str, str]:
    """Returns the root that a path names, itself or as it is without links, and the rest of the path."""
    for root in roots:
        for name in (root, os.path.realpath(root)):
            if path == name or path.startswith(name.rstrip("/") + "/"):
                return root, path[len(name) :].lstrip("/")
    shown = ", ".join(roots) or "none"
    raise UserError(f"{key}: {path} lies outside the tenant's roots, expected a path beneath one of {shown}")


@contextlib.contextmanager
def _named(key: str, path: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{key}: {path}: no such file or folder, or something of it has just gone") from error
