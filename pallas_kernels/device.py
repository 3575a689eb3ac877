"""The device that kernels are made for: the one at hand, or the one that is traced for."""

import jax
from jax.extend import backend


def multiprocessors() -> int:
    """Returns the multiprocessors of the device at hand, or of the one that is traced for."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return int(described.num_cores if described is not None else backend.get_default_device().core_count)


def device_kind() -> str:
    """Returns what kind of device is at hand, or is traced for."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return str((backend.get_default_device() if described is None else described).device_kind)
