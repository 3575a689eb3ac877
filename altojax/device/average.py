"""Running averages of adapters: where a trial would land if its learning rate came down now."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def running_averages(
    averages: Sequence[Any],
    windows: Sequence[float],
    weights: Any,
    steps: Int[Array, " slots"],
    stepped: Bool[Array, " slots"],
) -> tuple[Any, ...]:
    """Moves each slot's averages by polynomial decay (Shamir & Zhang 2013) towards its new weights.

    With the window η, avg_t = avg_{t−1} + (η + 1) / (t + η) · (w_t − avg_{t−1}): about the last 1 / (η + 1) of the run
    so far. The first step takes the weights as they are, so an average needs neither a reset nor a correction.

    Args:
        averages: Pytrees of float32 [layer, slot, in, out], one a window.
        windows: η of each, at least 0, which is the plain mean.
        weights: The new weights, likewise.
        steps: int32 [slots], optimizer steps taken, this one included.
        stepped: Which slots took it; the others keep everything bit for bit.
    """

    def moved(window: float, average: Any) -> Any:
        share = share_of_newest(window, steps)[None, :, None, None]
        take = stepped[None, :, None, None]
        return jax.tree.map(lambda old, new: jnp.where(take, old + share * (new - old), old), average, weights)

    return tuple(moved(window, average) for window, average in zip(windows, averages, strict=True))


def share_of_newest(window: float, steps: Int[Array, " slots"]) -> Float[Array, " slots"]:
    """Returns (η + 1) / (t + η) of the window η at step t, counted from 1."""
    return jnp.float32(window + 1) / (jnp.maximum(steps, 1).astype(jnp.float32) + jnp.float32(window))
