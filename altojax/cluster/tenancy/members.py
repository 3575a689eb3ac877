"""Tenants and their users, as the operator's file names them."""

import grp
import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self

import pydantic

from altojax.cluster.scheduling.resources.tenants import Tenant
from altojax.cluster.tenancy.grants import Grants
from jaxrun.process.errors import UserError, nearest

Identifier = str | Annotated[int, pydantic.Field(ge=0)]
"""An OS user or group, by name or number."""


class TenantSection(Grants, Tenant):
    """A tenant: its share, who belongs to it, and what its tasks may touch and run.

    Attributes:
        users: OS users who belong to it, by name or number; beside them only the operator may submit for it.
        groups: OS groups whose users belong to it, by name or number.
        default: Whether users whom no tenant names submit for it, each apart from the others; needs a ``quota``.
    """

    users: list[Identifier] = pydantic.Field(default=[])
    groups: list[Identifier] = pydantic.Field(default=[])
    default: bool = False

    @pydantic.model_validator(mode="after")
    def _strangers_have_a_quota(self) -> "TenantSection":
        if self.default and self.quota is None:
            raise ValueError("quota is missing, expected one where default is true: it is for users whom nobody names")
        return self


@dataclass(frozen=True)
class Members:
    """Members of the tenants of a queue, and its operator.

    Without tenants a queue is the operator's alone, whose tasks then have the operator's name for a tenant.

    Attributes:
        operator: Number of the OS user who serves.
        uids: Tenant -> numbers of its users, for each tenant.
        gids: Tenant -> numbers of the groups whose users belong to it.
        default: The tenant of users whom none names; None refuses them.
    """

    operator: int
    uids: Mapping[str, frozenset[int]] = field(default_factory=dict)
    gids: Mapping[str, frozenset[int]] = field(default_factory=dict)
    default: str | None = None

    @classmethod
    def of(cls, tenants: Mapping[str, TenantSection], operator: int) -> Self:
        """Looks up the users and groups that a file names.

        Raises:
            UserError: This host has no such user or group.
        """
        return cls(
            operator,
            {
                name: frozenset(_uid(f"tenants.{name}.users.{at}", one) for at, one in enumerate(tenant.users))
                for name, tenant in tenants.items()
            },
            {
                name: frozenset(_gid(f"tenants.{name}.groups.{at}", one) for at, one in enumerate(tenant.groups))
                for name, tenant in tenants.items()
            },
            next((name for name, tenant in tenants.items() if tenant.default), None),
        )

    @property
    def tenants(self) -> tuple[str, ...]:
        """All tenants; that of the operator's name where the file names none."""
        return tuple(self.uids) or (user_name(self.operator),)

    def naming(self, uid: int) -> tuple[str, ...]:
        """Returns the tenants that name a user, or a group of the user's; without tenants the operator's own."""
        if not self.uids:
            return self.tenants if uid == self.operator else ()
        groups = groups_of(uid) if any(self.gids.values()) else frozenset()
        return tuple(
            name for name, uids in self.uids.items() if uid in uids or not groups.isdisjoint(self.gids.get(name, ()))
        )

    def tenant_of(self, uid: int, given: str | None) -> str:
        """Returns the tenant that a user submits for: the one given, else the only one that the user belongs to.

        Raises:
            UserError: The user does not belong to it, or to none, or to several and none was given.
        """
        named = self.naming(uid) or ((self.default,) if self.default and uid != self.operator else ())
        mine = self.tenants if uid == self.operator else named
        if not mine:
            raise self.refusal(uid)
        check_tenant(uid, given, mine)
        alone = named or mine
        if given is None and len(alone) > 1:
            raise UserError(f"queue.tenant: missing, expected one of yours: {', '.join(alone)}")
        return given or alone[0]

    def knows(self, uid: int) -> bool:
        """Whether a user may ask anything of the queue."""
        return uid == self.operator or self.default is not None or bool(self.naming(uid))

    def refusal(self, uid: int) -> UserError:
        """Returns what is said to a user who may not."""
        return UserError(
            f"user {user_name(uid)}: belongs to no tenant of this queue, expected one of those whom its operator "
            f"({user_name(self.operator)}) names there"
        )

    def share(self, uid: int, tenant: str, owner: int) -> bool:
        """Whether a user may act on a task of `owner` for `tenant`, and see all of it.

        The operator may, the owner, and whoever the same tenant names.
        """
        return uid in (self.operator, owner) or tenant in self.naming(uid)

    def apart(self, uid: int, tenant: str, owner: int, other: str) -> bool:
        """Whether files of a task of `owner` for the tenant `other` are out of reach for a user's task for `tenant`."""
        return tenant != other or (tenant == self.default and uid != owner and tenant not in self.naming(uid))


def check_tenant(uid: int, given: str | None, mine: Sequence[str]) -> None:
    """Refuses a tenant that is none of a user's.

    Raises:
        UserError: It is.
    """
    if given is not None and given not in mine:
        raise UserError(
            f"queue.tenant: '{given}' is no tenant of user {user_name(uid)}{nearest(given, mine)}, "
            f"expected one of {', '.join(mine)}"
        )


def user_name(uid: int) -> str:
    """Returns the name of an OS user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def groups_of(uid: int) -> frozenset[int]:
    """Returns the numbers of all groups of an OS user; none where this host has no such user."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _uid(key: str, given: str | int) -> int:
    try:
        return given if isinstance(given, int) else pwd.getpwnam(given).pw_uid
    except KeyError as error:
        raise UserError(f"{key}: '{given}' is no user of this host, expected a name or a number of one") from error


def _gid(key: str, given: str | int) -> int:
    try:
        return given if isinstance(given, int) else grp.getgrnam(given).gr_gid
    except KeyError as error:
        raise UserError(f"{key}: '{given}' is no group of this host, expected a name or a number of one") from error
