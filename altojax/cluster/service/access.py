"""As whom a queue's tasks run, and what they are granted."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from altojax.cluster.tenancy.grants import Grants, Roots
from altojax.cluster.tenancy.members import groups_of, user_name
from altojax.cluster.tenancy.roots import check_code, check_output, check_paths
from altojax.config.tune_config import TuneConfig
from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError
from jaxrun.untrusted.accounts import UMASK, Account, closed_to_others, files_as

if TYPE_CHECKING:
    from altojax.cluster.engines.engine import Engine
    from altojax.cluster.service.queue.store import StoredJob

_FOR_GROUP = 0o027


@dataclass(frozen=True)
class Access:
    """Rights of tasks.

    Attributes:
        grants: Tenant -> what its tasks may touch and run; nothing beside the defaults for others.
        as_submitter: Whether tasks run as who submitted them, and what is theirs is touched as that user.
        umask: What is taken from the rights of new files: in a shared queue they are for the submitter, and where
            tasks run as who serves for the group of their folder; None leaves them as who serves has them.
    """

    grants: Mapping[str, Grants] = field(default_factory=dict)
    as_submitter: bool = False
    umask: int | None = None

    @classmethod
    def on(cls, engine: "Engine", grants: Mapping[str, Grants]) -> "Access":
        """Rights of tasks on an engine: as their submitters where it can, and root serves."""
        as_submitter = engine.switches_user and os.geteuid() == 0
        return cls(grants, as_submitter, (UMASK if as_submitter else _FOR_GROUP) if grants else None)

    def uid(self, submitter: int) -> int | None:
        """Returns the user as whom a task runs; None is who serves."""
        return submitter if self.as_submitter and submitter != os.geteuid() else None

    def files(self, submitter: int) -> AbstractContextManager[None]:
        """Touches files in the block as the user as whom a task runs.

        Raises:
            UserError: This host has no such user.
        """
        uid = self.uid(submitter)
        return contextlib.nullcontext() if uid is None else files_as(Account.of(uid))

    @contextlib.contextmanager
    def of(self, job: "StoredJob") -> Iterator[None]:
        """Touches a task's run in the block, as the user as whom it runs, where it still lies beneath its roots.

        Raises:
            UserError: It does not any more, or this host has no such user.
        """
        with self.files(job.uid):
            if (roots := self.roots(job.tenant)) is not None and not job.members:  # a shared run lies in the queue
                check_output(job.output_dir, roots)
            yield

    def warnings(self, engine: str, needed: Sequence[Path] = ()) -> list[str]:
        """Returns, line by line, what is to be known of the users as whom tasks run.

        Args:
            engine: Where they run.
            needed: Programs and packages that a worker needs.
        """
        if not self.grants:
            return []
        if self.as_submitter:
            closed = dict.fromkeys(found for path in needed if (found := closed_to_others(path)) is not None)
            expected = "expected an interpreter and packages that all who submit may read and run"
            return [f"{path}: is closed to other users, as whom tasks cannot start; {expected}" for path in closed]
        me = "who started the cluster" if engine == "ray" else user_name(os.geteuid())
        return [f"tasks run on {engine} as {me}, whoever submitted them"] + [
            f"tenant {name}: has no roots, so its tasks read and write whatever {me} may"
            for name, grants in self.grants.items()
            if grants.roots is None
        ]

    def roots(self, tenant: str) -> Roots | None:
        """Returns the roots of a tenant, if it has any."""
        return self.grants.get(tenant, Grants()).roots

    def check_readable(self, output_dir: str, submitter: int) -> None:
        """Refuses a folder whose new files the submitter could not read.

        Raises:
            UserError: They would be for another group.
        """
        if self.umask != _FOR_GROUP or submitter == os.geteuid():
            return
        with user_errors(output_dir):
            there = next(one for one in (Path(output_dir), *Path(output_dir).parents) if one.exists())
            if "system.posix_acl_default" in os.listxattr(there):  # which says itself for whom new files are
                return
            about = there.stat()
        if (about.st_gid if about.st_mode & stat.S_ISGID else os.getegid()) not in groups_of(submitter):
            raise UserError(
                f"output_dir: what {user_name(os.geteuid())} writes in {there} would not be readable by "
                f"{user_name(submitter)}, expected a folder of a group of both that new files take over (chmod g+s)"
            )

    def check(self, config: TuneConfig, tenant: str, *, operates: bool) -> None:
        """Refuses a run that its tenant is not granted; who serves may run any code.

        Raises:
            UserError: It is not; the line names the key.
        """
        if not operates:
            check_code(config, tenant, self.grants.get(tenant, Grants()))
        if (roots := self.roots(tenant)) is not None:
            check_paths(config, roots)
