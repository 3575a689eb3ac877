"""Occupancy of GPUs: free, used by whom and until when, or held for whom."""

from bisect import bisect_right
from collections.abc import Iterator

from altojax.cluster.scheduling.resources.nodes import Cluster, Free, Gpus


class Occupancy:
    """The GPUs of a cluster.

    A GPU that is held counts as taken from the moment that nobody is on it. What ran on a node that has gone is still
    known, until it is released.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.free = Free(cluster)
        self._on: dict[str, tuple[Gpus, float]] = {}
        self._user: dict[tuple[str, int], str] = {}
        self._held: dict[str, tuple[Gpus, float]] = {}
        self._keeper: dict[tuple[str, int], str] = {}
        self._missing: dict[str, int] = {}  # of a hold, its GPUs that somebody is on
        self._times: dict[str, list[tuple[float, int]]] = {}  # of a node, when each GPU is free that is not held

    def take(self, name: str, gpus: Gpus, until_s: float) -> None:
        """A task starts on GPUs that are free.

        Raises:
            ValueError: One of them is not.
        """
        there: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(gpus):
            there[node] = (*there.get(node, ()), index)
            self._user[node, index] = name
            self._times.pop(node, None)
        self.free.claim(there)
        self._on[name] = gpus, until_s

    def expect(self, name: str, until_s: float) -> None:
        """A task is now expected to run until another time."""
        gpus = self._on[name][0]
        self._on[name] = gpus, until_s
        for node in gpus:
            self._times.pop(node, None)

    def release(self, name: str) -> None:
        """A task is no longer on its GPUs."""
        gpus, _ = self._on.pop(name)
        freed: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(gpus):
            if self._user.get((node, index)) != name:
                continue
            del self._user[node, index]
            self._times.pop(node, None)
            keeper = self._keeper.get((node, index))
            if keeper is None:
                freed[node] = (*freed.get(node, ()), index)
            else:
                self._missing[keeper] -= 1
        self.free.release(freed)

    def hold(self, name: str, gpus: Gpus, until_s: float) -> None:
        """GPUs that nobody else's hold has are kept for a task."""
        self._held[name] = gpus, until_s
        self._missing[name] = 0
        kept: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(gpus):
            self._keeper[node, index] = name
            self._times.pop(node, None)
            if (node, index) in self._user:
                self._missing[name] += 1
            else:
                kept[node] = (*kept.get(node, ()), index)
        self.free.claim(kept)

    def drop(self, name: str) -> None:
        """GPUs are no longer kept for a task."""
        gpus, _ = self._held.pop(name)
        del self._missing[name]
        freed: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(gpus):
            if self._keeper.pop((node, index), None) != name:
                continue
            self._times.pop(node, None)
            if (node, index) not in self._user:
                freed[node] = (*freed.get(node, ()), index)
        self.free.release(freed)

    def held(self, name: str) -> Gpus | None:
        """GPUs that are held for a task, if there are any."""
        return self._held[name][0] if name in self._held else None

    def ready(self, name: str) -> bool:
        """Tells whether all GPUs that are held for a task are free for it."""
        return not self._missing[name]

    def unheld(self, gpus: Gpus) -> Gpus:
        """Those of some GPUs that exist and are held for nobody."""
        left: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(gpus):
            if (node, index) not in self._keeper:
                left[node] = (*left.get(node, ()), index)
        return left

    @property
    def holds(self) -> dict[str, tuple[Gpus, float]]:
        """By task, the GPUs that are held for it, and until when that was expected to last."""
        return self._held

    @property
    def running(self) -> dict[str, tuple[Gpus, float]]:
        """By task, the GPUs that it is on, and until when."""
        return self._on

    def changed(self, node: str, gpus: int) -> "Occupancy":
        """Returns what is left when a node comes, goes or changes: holds that have GPUs of it are gone."""
        other = Occupancy(self.cluster.changed(node, gpus))
        other._fill(self._on, {name: held for name, held in self._held.items() if node not in held[0]})
        return other

    def copy(self) -> "Occupancy":
        """Returns one that changes on its own."""
        other = Occupancy(self.cluster)
        other._fill(self._on, self._held)
        return other

    def spot(self, width: int, beside: Gpus | None = None, instead: str | None = None) -> Gpus | None:
        """Finds free GPUs for a gang and leaves them free.

        Args:
            width: GPUs of the gang.
            beside: GPUs that it must not use.
            instead: A task whose GPUs count as free.
        """
        if beside is None and instead is None and not self.free.fits(width):
            return None
        closed: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(beside or {}):
            if (node, index) not in self._user and (node, index) not in self._keeper:
                closed[node] = (*closed.get(node, ()), index)
        opened: dict[str, tuple[int, ...]] = {}
        for node, index in self._there(self._on[instead][0] if instead else {}):
            if (node, index) not in self._keeper:
                opened[node] = (*opened.get(node, ()), index)
        self.free.claim(closed)
        self.free.release(opened)
        gpus = self.free.take(width)
        if gpus is not None:
            self.free.release(gpus)
        self.free.claim(opened)
        self.free.release(closed)
        return gpus

    def earliest(self, width: int, now_s: float) -> tuple[float, Gpus] | None:
        """Finds where a gang can start first, if nothing else starts there: when, and on which GPUs that are not held.

        Of equals the first node; in it, of the GPUs that are free by then, those that are free last: others have the
        rest in the meantime.
        """
        cluster = self.cluster
        best: tuple[float, Gpus] | None = None
        if width <= cluster.largest:
            for node, size in cluster.nodes.items():
                times = self._free_at(node) if size >= width else []
                if len(times) >= width and (best is None or max(times[width - 1][0], now_s) < best[0]):
                    at_s = max(times[width - 1][0], now_s)
                    best = at_s, {node: tuple(sorted(index for _, index in _last(times, at_s, width)))}
            return best
        for size, count in cluster.splits(width):
            whole = [
                (times[-1][0], place, node)
                for place, (node, gpus) in enumerate(cluster.nodes.items())
                if gpus == size and len(times := self._free_at(node)) == size
            ]
            whole.sort()
            if len(whole) >= count and (best is None or max(whole[count - 1][0], now_s) < best[0]):
                at_s = max(whole[count - 1][0], now_s)
                best = at_s, {node: tuple(range(size)) for _, _, node in _last(whole, at_s, count)}
        return best

    def _fill(self, on: dict[str, tuple[Gpus, float]], held: dict[str, tuple[Gpus, float]]) -> None:
        for name, (gpus, until_s) in on.items():
            self.take(name, gpus, until_s)
        for name, (gpus, until_s) in held.items():
            self.hold(name, gpus, until_s)

    def _free_at(self, node: str) -> list[tuple[float, int]]:
        times = self._times.get(node)
        if times is None:
            times = []
            for index in range(self.cluster.nodes[node]):
                if (node, index) not in self._keeper:
                    user = self._user.get((node, index))
                    times.append((float("-inf") if user is None else self._on[user][1], index))
            times.sort()
            self._times[node] = times
        return times

    def _there(self, gpus: Gpus) -> Iterator[tuple[str, int]]:
        for node, indices in gpus.items():
            size = self.cluster.nodes.get(node, 0)
            for index in indices:
                if index < size:
                    yield node, index


def _last[Timed: tuple](times: list[Timed], at_s: float, count: int) -> list[Timed]:
    """Of what is sorted by time, the last `count` that come no later than `at_s`."""
    until = bisect_right(times, at_s, key=lambda one: one[0])
    return times[until - count : until]
