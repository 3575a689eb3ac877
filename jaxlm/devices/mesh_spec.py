"""The `mesh` section of a config: how devices share the work."""

from typing import ClassVar

from jaxrun.config.config import StrictModel


class MeshSpec(StrictModel):
    """The `mesh` section of a config.

    Attributes:
        adapter: Device groups, each with slots of its own; null takes all devices that the other axes leave.
        tensor: Devices that share heads and inner neurons of every layer, a power of two.
        data: Devices that share the rows of each slot.
        shard_base: Whether each device holds a part of the frozen base and gathers it layer by layer, rather than all
            that it computes with; null shards a base that would leave too little room beside it.
    """

    adapter: int | None = None
    tensor: int = 1
    data: int = 1
    shard_base: bool | None = None

    foreign_names: ClassVar[dict[str, str]] = {
        "tp": "tensor",
        "tensor_parallel": "tensor",
        "tensor_parallel_size": "tensor",
        "dp": "data",
        "data_parallel": "data",
    }
