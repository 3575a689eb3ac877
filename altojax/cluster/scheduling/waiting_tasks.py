"""Tasks that wait: of each tenant and width, in the order in which they are to start, and by age."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

Rank = tuple[int, float, int]
"""Sort key of waiting tasks: whether the plan lacks it, its place or key, and its number."""


class WaitingTask(NamedTuple):
    """A task that waits; `rank` comes first so that entries sort by it."""

    rank: Rank
    name: str
    tenant: str
    width: int
    since_s: float


class Waiting:
    """A sorted list for each tenant and width: moving thousands of entries is faster than keeping a tree in Python."""

    def __init__(self) -> None:
        self._entries: dict[str, WaitingTask] = {}
        self._lists: dict[str, dict[int, list[WaitingTask]]] = {}
        self._ages: dict[str, list[tuple[float, Rank, str]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def put(self, entry: WaitingTask) -> None:
        """Adds a task, or changes its place."""
        self.drop(entry.name)
        self._entries[entry.name] = entry
        insort(self._lists.setdefault(entry.tenant, {}).setdefault(entry.width, []), entry)
        insort(self._ages.setdefault(entry.tenant, []), (entry.since_s, entry.rank, entry.name))

    def drop(self, name: str) -> None:
        """Forgets a task, if it waits."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        entries = self._lists[entry.tenant][entry.width]
        del entries[bisect_left(entries, entry)]
        if not entries:
            del self._lists[entry.tenant][entry.width]
        ages = self._ages[entry.tenant]
        del ages[bisect_left(ages, (entry.since_s, entry.rank, name))]
        if not ages:
            del self._lists[entry.tenant], self._ages[entry.tenant]

    def names(self) -> list[str]:
        """All of them, in no order that means anything."""
        return list(self._entries)

    def tenants(self) -> list[str]:
        """Tenants with tasks that wait."""
        return list(self._lists)

    def firsts(self, tenant: str) -> Iterator[WaitingTask]:
        """Of each width, the first task of a tenant."""
        for entries in self._lists[tenant].values():
            yield entries[0]

    def by_age(self, tenant: str) -> Iterator[WaitingTask]:
        """Tasks of a tenant, the one that has waited longest first."""
        for _, _, name in self._ages[tenant]:
            yield self._entries[name]

    def in_order(self, count: int) -> list[WaitingTask]:
        """The first `count` tasks of all tenants and widths."""
        lists = [entries for widths in self._lists.values() for entries in widths.values()]
        return list(islice(heapq.merge(*lists), count))
