"""The GPUs of a cluster, by node."""

from collections.abc import Mapping
from dataclasses import dataclass

Gpus = Mapping[str, tuple[int, ...]]
"""Name of a node -> indices of GPUs on it."""


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
