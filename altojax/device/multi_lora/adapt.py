"""Puts adapters on a base."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from altojax.device.multi_lora.experts import MultiLoRAExperts
from altojax.device.multi_lora.linear import MultiLoRALinear
from jaxlm.devices.mesh import input_axis
from jaxlm.families.names import Projection
from jaxlm.models.transformer import Transformer


def adapt(
    model: Transformer,
    projections: dict[str, Projection],
    *,
    slots: int,
    rank: int,
    kernels: str | None = None,
    zeros: Callable[[str, str, tuple[int, ...]], Array] = lambda key, half, shape: jnp.zeros(shape, jnp.float32),
    salt: Callable[[np.ndarray], Array] = jnp.asarray,
) -> None:
    """Replaces, in place, each named projection of `model` by an adapted one with empty slots.

    Args:
        model: The frozen base.
        projections: The projections that any trial adapts, by internal key (``self_attn.q_proj``).
        slots: Adapters that train at once.
        rank: The largest rank of any trial.
        kernels: Implementation of the adapter product, see `pallas_kernels`; None takes the fastest that fits.
        zeros: (projection, ``lora_a`` or ``lora_b``, shape) -> float32 zeros, where the run wants them.
        salt: Places the salts of dropout masks.
    """
    tensor = None if model.mesh_axes is None else model.mesh_axes.tensor
    for key, projection in projections.items():
        *parents, name = projection.path.split(".")
        owner: Any = model
        for parent in parents:
            owner = getattr(owner, parent)
        sizes: dict[str, Any] = {"slots": slots, "rank": rank}
        sizes |= {"zeros": partial(zeros, key)}
        if projection.experts:
            setattr(owner, name, MultiLoRAExperts(getattr(owner, name), projection, dtype=model.dtype, **sizes))
            continue
        shares = None if input_axis(key) is None else tensor
        kinds: dict[str, Any] = {"kernels": kernels, "salt": salt, "shares_inputs": shares}
        setattr(owner, name, MultiLoRALinear(getattr(owner, name), projection, **sizes, **kinds))
