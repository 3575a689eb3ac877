"""The mesh of a run: the one its config asks for, else one that its devices, trials and model make."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from altojax.estimates.memory_model import BaseBytes, base_of
from jaxlm.devices.machine import device_budget
from jaxlm.devices.mesh import MeshLayout, make_layout
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.families.config import ModelConfig
from jaxlm.quantised.formats import Forms
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted, size_text

ROOM = 0.6
"""The share of a device's memory that weights may take, so that adapters and steps find room beside them."""
WHOLE = 0.3
"""The share that weights may take which could be sharded: gathering them costs time, holding them costs slots."""
HELD = 0.8
"""The share that weights may take which are used and not trained on: a step without a backward pass needs little."""


def choose_layout(
    spec: MeshSpec | None,
    model: ModelConfig,
    trials: int,
    dtype: DTypeLike,
    budget: int,
    forms: Forms | None = None,
) -> MeshLayout | None:
    """Returns the layout of a base, or None for one device.

    Without a `spec`, all accelerators take slots of their own, as far as there are trials; where the weights that one
    holds at a time are too large for that, they share heads and inner neurons too. Unless the `spec` says it, a base is
    sharded only where it is large for a device. The devices of a CPU are simulated, so that they are used only where a
    config or several processes ask for it.

    Args:
        spec: What the config asks for, if anything.
        model: The base.
        trials: Trials that want a slot.
        dtype: Of its weights.
        budget: Bytes of the smallest device.
        forms: Of its matrices that are packed.

    Raises:
        UserError: The mesh does not fit the devices or the model.
    """
    base = base_of(model, jnp.dtype(dtype).itemsize, forms)
    layout = _axes(spec, model, trials, base, budget, forms or {})
    if layout is None or layout.mesh.size == 1:
        return None
    whole = replace(layout, shards_base=False)
    free = spec is None or spec.shard_base is None
    chosen = whole if free and weight_bytes(whole, base) <= WHOLE * budget else layout
    chosen.check_packed(forms or {})
    return chosen


def layout_for_use(
    spec: MeshSpec | None, model: ModelConfig, dtype: DTypeLike, forms: Forms | None = None
) -> MeshLayout | None:
    """Returns the layout of a base that is used and not trained on, or None for one device.

    Without a `spec`, a base that one accelerator holds lies on one; a larger one is sharded over all of this process,
    which share the rows of every batch.

    Args:
        spec: What the user asks for, if anything.
        model: The base.
        dtype: Of its weights.
        forms: Of those matrices that are packed.

    Raises:
        UserError: The mesh does not fit the devices or the model, or all devices together do not hold the base.
    """
    if spec is not None:
        layout = make_layout(spec, model)
        layout.check_packed(forms or {})
        return layout if layout.mesh.size > 1 else None
    budget, devices = device_budget(), jax.local_device_count()
    base = base_of(model, jnp.dtype(dtype).itemsize, forms)
    if jax.default_backend() == "cpu" or base.total + 2 * base.dense <= HELD * budget:
        return None
    counts = [count for count in range(devices, 0, -1) if model.hidden_size % count == 0]
    layouts = ((count, make_layout(MeshSpec(adapter=1, data=count), model)) for count in counts)
    count, layout = next((count, one) for count, one in layouts if count == 1 or _shares(one, forms or {}))
    held = min(weight_bytes(layout, base), base.total)
    if held > budget:
        raise UserError(
            f"the base takes {size_text(base.total)} in {jnp.dtype(dtype).name}, of which each of "
            f"{counted(count, 'device')} would hold {size_text(held)} at a time, expected at most the "
            f"{size_text(budget)} that a device has: more devices, a smaller dtype, or JAX_PLATFORMS=cpu"
        )
    return layout if count > 1 else None


def _axes(
    spec: MeshSpec | None, model: ModelConfig, trials: int, base: BaseBytes, budget: int, forms: Forms
) -> MeshLayout | None:
    devices = jax.device_count()
    if spec is not None:
        return make_layout(spec, model)
    if devices == 1 or (jax.default_backend() == "cpu" and jax.process_count() == 1):
        return None
    counts = [devices] if jax.process_count() > 1 else range(devices, 1, -1)
    found = [layout for count in counts for layout in _layouts(count, model, forms)]
    if not found:
        if jax.process_count() == 1:
            return None
        return make_layout(MeshSpec(), model)
    usable = [layout for layout in found if layout.groups <= trials] or found[-1:]
    least = min(usable, key=lambda layout: weight_bytes(layout, base))
    return next((layout for layout in usable if weight_bytes(layout, base) <= ROOM * budget), least)


def weight_bytes(layout: MeshLayout, base: BaseBytes) -> int:
    """Returns the bytes of frozen weights that a device holds at a time.

    Its own part of all of them, two layers as they are gathered and made dense, of which devices of ``tensor`` need a
    part, and a table of embeddings or the head. Of a base that is not sharded all counts, or its part of ``tensor``.
    """
    if not layout.shards_base:
        own = (base.total + 2 * base.dense) // layout.tensor
        return own + (max(base.embedding, base.head) if layout.tensor > 1 else 0)
    layers = (sum(sorted(base.layers)[-2:]) + 2 * base.dense) // layout.tensor
    return base.total // layout.mesh.size + layers + max(base.embedding, base.head)


def received_bytes(layout: MeshLayout, base: BaseBytes) -> int:
    """Returns the bytes of frozen weights that a device receives in a training step, whatever the adapters.

    Layers come in the forward pass and again in the backward pass, which has the last one already and brings the first
    twice; tables come for the embedding and for the head. Devices of ``tensor`` need a part of each layer.
    """
    if not layout.shards_base:
        return (base.embedding + max(base.head, base.embedding)) * (layout.tensor - 1) // layout.tensor
    devices = layout.mesh.size
    layers = (2 * sum(base.layers) + base.layers[0]) * (devices // layout.tensor - 1)
    tables = (base.embedding + max(base.head, base.embedding)) * (devices - 1)
    return (layers + tables) // devices


def _layouts(count: int, model: ModelConfig, forms: Forms) -> list[MeshLayout]:
    """Returns the layouts of so many devices that the model allows, the fewest to a group first.

    Where packed matrices cannot be sharded among them they keep the base whole, or their part of ``tensor``.
    """
    found = []
    tensor = 1
    while tensor <= count:
        if count % tensor == 0:
            try:
                layout = make_layout(MeshSpec(adapter=count // tensor, tensor=tensor), model)
            except UserError:
                break
            choices = (layout, replace(layout, shards_base=False))
            found += [one for one in choices if _shares(one, forms)][:1]
        tensor *= 2
    return found


def _shares(layout: MeshLayout, forms: Forms) -> bool:
    """Whether devices share packed matrices without cutting a block."""
    try:
        layout.check_packed(forms)
    except UserError:
        return False
    return True
