"""The mesh of a run: the one its config asks for, else one that its devices, trials and model make."""

import math

import jax
from jax.typing import DTypeLike

from backbone.config import ModelConfig
from backbone.machine import device_budget
from backbone.mesh import Layout, MeshSpec, make_layout
from backbone.names import weights
from harness.errors import UserError

ROOM = 0.6
"""The share of a device's memory that weights may take, so that adapters and steps find room beside them."""


def choose_layout(spec: MeshSpec | None, model: ModelConfig, trials: int, dtype: DTypeLike) -> Layout | None:
    """Returns the layout of a base, or None for one device.

    Without a `spec`, all accelerators take slots of their own, as far as there are trials; where the weights that one
    holds at a time are too large for that, they share heads and inner neurons too. The devices of a CPU are pretended,
    so that they are used only where a config or several processes ask for it.

    Args:
        spec: What the config asks for, if anything.
        model: The base.
        trials: Trials that want a slot.
        dtype: Of its weights.

    Raises:
        UserError: The mesh does not fit the devices or the model.
    """
    devices = jax.device_count()
    if spec is not None:
        layout = make_layout(spec, model)
        return layout if layout.mesh.size > 1 else None
    if devices == 1 or (jax.default_backend() == "cpu" and jax.process_count() == 1):
        return None
    counts = [devices] if jax.process_count() > 1 else range(devices, 1, -1)
    found = [layout for count in counts for layout in _layouts(count, model)]
    if not found:
        if jax.process_count() == 1:
            return None
        return make_layout(MeshSpec(), model)
    usable = [layout for layout in found if layout.groups <= trials] or found[-1:]
    budget = ROOM * device_budget()
    return next((layout for layout in usable if weight_bytes(layout, model, dtype) <= budget), usable[-1])


def weight_bytes(layout: Layout, model: ModelConfig, dtype: DTypeLike) -> int:
    """Returns the bytes of frozen weights that a device holds at a time.

    Its own part of all of them, two layers as they are gathered, and a table of embeddings or the head.
    """
    size = jax.numpy.dtype(dtype).itemsize
    whole = sum(len(one.entries) * math.prod(one.shape) for one in weights(model))
    layer = sum(math.prod(one.shape) for one in weights(model) if one.layers is not None)
    table = model.vocab_size * model.hidden_size
    return size * (whole // layout.mesh.size + 2 * layer // layout.tensor + table)


def _layouts(count: int, model: ModelConfig) -> list[Layout]:
    """Returns the layouts of so many devices that the model allows, the fewest to a group first."""
    found = []
    tensor = 1
    while tensor <= count:
        if count % tensor == 0:
            try:
                found.append(make_layout(MeshSpec(adapter=count // tensor, tensor=tensor), model))
            except UserError:
                break
        tensor *= 2
    return found
