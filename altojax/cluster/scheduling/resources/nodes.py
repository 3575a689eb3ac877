"""The GPUs of a cluster, by node, and which of them are free."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

Gpus = Mapping[str, tuple[int, ...]]
"""Name of a node -> indices of GPUs on it."""


def neighbours(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Returns stretches of indices that follow each other, ascending: the first of each and how many."""
    stretches: list[tuple[int, int]] = []
    for index in sorted(indices):
        if stretches and sum(stretches[-1]) == index:
            stretches[-1] = (stretches[-1][0], stretches[-1][1] + 1)
        else:
            stretches.append((index, 1))
    return stretches


@dataclass(frozen=True)
class Cluster:
    """Nodes and how many GPUs each has.

    A gang that fits one node stays inside it; a larger one takes whole nodes of one size.

    Attributes:
        nodes: Name -> GPUs, in the order in which nodes are filled.
    """

    nodes: Mapping[str, int]

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(self.nodes.values())

    @cached_property
    def largest(self) -> int:
        """GPUs of the largest node."""
        return max(self.nodes.values(), default=0)

    def holds(self, width: int) -> bool:
        """Tells whether a gang of `width` GPUs can run while nothing else does."""
        return 1 <= width <= self.largest or bool(self.splits(width))

    def splits(self, width: int) -> list[tuple[int, int]]:
        """The ways to take whole nodes: (GPUs of a node, nodes), fewest nodes first; none for a gang that fits one."""
        if width <= self.largest:
            return []
        sizes = list(self.nodes.values())
        ways = [(size, width // size) for size in set(sizes) if size and width % size == 0]
        return sorted(((size, count) for size, count in ways if count <= sizes.count(size)), reverse=True)

    def present(self, gpus: Gpus) -> Gpus:
        """Returns those of `gpus` that the cluster has: nodes go, and with them GPUs that were in use."""
        left = {name: tuple(one for one in indices if one < self.nodes.get(name, 0)) for name, indices in gpus.items()}
        return {name: indices for name, indices in left.items() if indices}

    def changed(self, node: str, gpus: int) -> "Cluster":
        """Returns the cluster after a node came, changed or, with no GPUs, went."""
        nodes = {**self.nodes, node: gpus}
        return Cluster({name: count for name, count in nodes.items() if count})


class Free:
    """The free GPUs of a cluster.

    The same calls give the same GPUs. A node is a bit of an integer, and so is a GPU of a node: taking and releasing
    take no longer on a thousand nodes than on ten.
    """

    def __init__(self, cluster: Cluster, taken: Iterable[Gpus] = ()):
        """Begins with all GPUs but those that are `taken`.

        Raises:
            ValueError: A GPU is taken twice, or the cluster does not have it.
        """
        self._cluster = cluster
        self._names, self._sizes = tuple(cluster.nodes), tuple(cluster.nodes.values())
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._free = [(1 << size) - 1 for size in self._sizes]  # of each node, a bit a GPU
        self._nodes_with = [0] * (cluster.largest + 1)  # by free GPUs, a bit a node
        self._counts = 0  # a bit for each number of free GPUs that some node has
        self._splits: dict[int, list[tuple[int, int]]] = {}
        self._whole = dict.fromkeys(self._sizes, 0)  # by GPUs, the nodes of which all are free
        for number, size in enumerate(self._sizes):
            self._enter(number, size)
        for gpus in taken:
            self.claim(gpus)

    def copy(self) -> "Free":
        """Returns one that changes on its own."""
        other = copy.copy(self)
        other._free, other._nodes_with = self._free.copy(), self._nodes_with.copy()
        other._whole = self._whole.copy()
        return other

    @property
    def gpus(self) -> int:
        """Their number."""
        return sum(count * nodes.bit_count() for count, nodes in enumerate(self._nodes_with))

    def fits(self, width: int) -> bool:
        """Tells whether `take` would find GPUs."""
        if width <= self._cluster.largest:
            return bool(self._counts >> width)
        return self._split(width) is not None

    def take(self, width: int) -> Gpus | None:
        """Takes GPUs for a gang, or none where they are not free.

        Inside a node: the one with fewest free GPUs that suffice, the first of equals. Across nodes: the first that are
        wholly free, of the largest size that divides the gang.

        Args:
            width: GPUs of the gang, at least 1.
        """
        if width <= self._cluster.largest:
            fitting = self._counts >> width
            if not fitting:
                return None
            number = _lowest(self._nodes_with[width + _lowest(fitting)])
            return {self._names[number]: self._take_from(number, width)}
        split = self._split(width)
        if split is None:
            return None
        size, count = split
        gpus = {}
        for _ in range(count):
            number = _lowest(self._whole[size])
            gpus[self._names[number]] = self._take_from(number, size)
        return gpus

    def has(self, gpus: Gpus) -> bool:
        """Tells whether these very GPUs are free."""
        return all(
            name in self._numbers and not _bits(indices) & ~self._free[self._numbers[name]]
            for name, indices in gpus.items()
        )

    def claim(self, gpus: Gpus) -> None:
        """Takes these very GPUs.

        Raises:
            ValueError: One of them is not free.
        """
        if not self.has(gpus):
            raise ValueError(f"{dict(gpus)}, expected GPUs that are free")
        for name, indices in gpus.items():
            number = self._numbers[name]
            self._set(number, self._free[number] & ~_bits(indices))

    def release(self, gpus: Gpus) -> None:
        """Frees what was taken.

        Raises:
            ValueError: One of them is free already, or the cluster does not have it.
        """
        for name, indices in gpus.items():
            number, bits = self._numbers.get(name, -1), _bits(indices)
            if number < 0 or bits >> self._sizes[number] or self._free[number] & bits:
                raise ValueError(f"GPUs {indices} of node {name}, expected GPUs that are taken")
            self._set(number, self._free[number] | bits)

    def _split(self, width: int) -> tuple[int, int] | None:
        ways = self._splits.setdefault(width, self._cluster.splits(width))
        return next((way for way in ways if self._whole[way[0]].bit_count() >= way[1]), None)

    def _take_from(self, number: int, width: int) -> tuple[int, ...]:
        left, indices = self._free[number], []
        for _ in range(width):
            indices.append(_lowest(left))
            left &= left - 1
        self._set(number, left)
        return tuple(indices)

    def _set(self, number: int, free: int) -> None:
        count, node = self._free[number].bit_count(), 1 << number
        self._nodes_with[count] &= ~node
        if not self._nodes_with[count]:
            self._counts &= ~(1 << count)
        self._whole[self._sizes[number]] &= ~node
        self._free[number] = free
        self._enter(number, free.bit_count())

    def _enter(self, number: int, count: int) -> None:
        node = 1 << number
        self._nodes_with[count] |= node
        self._counts |= 1 << count
        if count == self._sizes[number]:
            self._whole[count] |= node


def _bits(indices: Iterable[int]) -> int:
    return sum(1 << index for index in indices)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
