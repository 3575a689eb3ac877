"""AdamW over slots, and running averages of what it makes.

Every hyper-parameter is an array with one entry a slot, so trials come and go as data.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SCHEDULES = ("constant", "linear", "cosine", "warmup_stable_decay")


class Hyper[A: (Array, np.ndarray)](NamedTuple):
    """The hyper-parameters of trials inside a step; every field has one entry a slot: on the devices, or on the host.

    Attributes:
        scale: float32, alpha / rank or alpha / sqrt(rank).
        dropout: float32, rate on the adapter's input.
        learning_rate: float32, the peak.
        schedule: int32, index into `SCHEDULES`.
        warmup_steps: int32, optimizer steps of linear warm-up.
        decay_steps: int32, last steps that decay (warmup_stable_decay alone).
        total_steps: int32.
        min_lr_ratio: float32, floor of cosine and warmup_stable_decay as a share of the peak.
        weight_decay: float32, decoupled.
        beta1: float32.
        beta2: float32.
        epsilon: float32.
        max_grad_norm: float32; 0 does not clip.
        objective: float32 each, numbers that the objective reads, by name.
    """

    scale: A
    dropout: A
    learning_rate: A
    schedule: A
    warmup_steps: A
    decay_steps: A
    total_steps: A
    min_lr_ratio: A
    weight_decay: A
    beta1: A
    beta2: A
    epsilon: A
    max_grad_norm: A
    objective: Mapping[str, A]


def empty_hyper(slots: int, objective: Sequence[str] = ()) -> Hyper[np.ndarray]:
    """Returns numpy arrays [slots] of harmless values for slots without a trial.

    Args:
        slots: Of the run.
        objective: Names of numbers that the objective reads.
    """
    whole = {"schedule", "warmup_steps", "decay_steps", "total_steps"}
    own = {name: np.zeros(slots, np.float32) for name in objective}
    names = [name for name in Hyper._fields if name != "objective"]
    return Hyper(**{name: np.zeros(slots, np.int32 if name in whole else np.float32) for name in names}, objective=own)


def learning_rate(hyper: Hyper[Array], step: Int[Array, " slots"]) -> Float[Array, " slots"]:
    """Returns each slot's learning rate at optimizer step `step` (0 for the first), as `transformers` schedules do.

    Every schedule starts with `warmup_steps` of linear warm-up from 0. ``linear`` then falls to 0 at `total_steps`,
    ``cosine`` along half a wave to the floor, ``warmup_stable_decay`` stays until the last `decay_steps` and then falls
    along half a wave to the floor.
    """
    t, warmup, total, decay = (
        value.astype(jnp.float32) for value in (step, hyper.warmup_steps, hyper.total_steps, hyper.decay_steps)
    )
    one = jnp.float32(1)
    warm = t / jnp.maximum(warmup, one)
    left = jnp.clip((total - t) / jnp.maximum(total - warmup, one), 0, 1)

    def half_wave(progress: Array) -> Array:
        wave = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        return hyper.min_lr_ratio + (1 - hyper.min_lr_ratio) * wave

    stable_until = total - decay
    shapes = jnp.stack(
        [
            jnp.ones_like(t),
            left,
            half_wave((t - warmup) / jnp.maximum(total - warmup, one)),
            half_wave((t - stable_until) / jnp.maximum(decay, one)),
        ]
    )
    shape = jnp.take_along_axis(shapes, hyper.schedule[None, :], axis=0)[0]
    return hyper.learning_rate * jnp.where(t < warmup, warm, shape)


def squares(gradients: Any) -> Float[Array, " slots"]:
    """Returns the sum of squares of each slot's own arrays; leaves are [layer, slot, in, out]."""
    sums = [jnp.sum(jnp.square(leaf), axis=(0, 2, 3)) for leaf in jax.tree.leaves(gradients)]
    return sum(sums[1:], sums[0])


def adamw(
    weights: Any,
    gradients: Any,
    mu: Any,
    nu: Any,
    steps: Int[Array, " slots"],
    hyper: Hyper[Array],
    apply: Bool[Array, " slots"],
    squares: Callable[[Any], Array] = squares,
) -> tuple[Any, Any, Any, Int[Array, " slots"], Float[Array, " slots"], Bool[Array, " slots"]]:
    """One AdamW step of each slot by itself (Loshchilov & Hutter 2019), after clipping the slot's own gradient norm.

    Args:
        weights: Pytree of float32 [layer, slot, in, out].
        gradients: Likewise.
        mu: First moments, likewise.
        nu: Second moments, likewise.
        steps: int32 [slots], optimizer steps already taken.
        hyper: Per-slot hyper-parameters.
        apply: Which slots take a step; the others keep everything bit for bit.
        squares: Sums the squares of each slot's gradients.

    Returns:
        weights, mu, nu, steps after the step; the gradient norm before clipping [slots]; and which slots stepped: a
        slot with a non-finite gradient skips its update.
    """
    norm = jnp.sqrt(squares(gradients))
    stepped = apply & jnp.isfinite(norm)
    limited = (hyper.max_grad_norm > 0) & (norm > hyper.max_grad_norm)
    clip = jnp.where(limited, hyper.max_grad_norm / jnp.where(limited, norm, 1), 1)
    rate = learning_rate(hyper, steps)
    count = (steps + 1).astype(jnp.float32)
    correction1, correction2 = 1 - hyper.beta1**count, 1 - hyper.beta2**count

    def over(values: Array) -> Array:
        return values[None, :, None, None]

    def update(w: Array, g: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
        g = g * over(clip)
        new_m = over(hyper.beta1) * m + over(1 - hyper.beta1) * g
        new_v = over(hyper.beta2) * v + over(1 - hyper.beta2) * jnp.square(g)
        take = over(stepped)
        # Made before the weights, which read them: a moment that is donated is then written in place.
        m, v = jax.lax.optimization_barrier((jnp.where(take, new_m, m), jnp.where(take, new_v, v)))
        direction = (m / over(correction1)) / (jnp.sqrt(v / over(correction2)) + over(hyper.epsilon))
        new_w = w - over(rate) * (direction + over(hyper.weight_decay) * w)
        return jnp.where(take, new_w, w), m, v

    treedef = jax.tree.structure(weights)
    leaves = [jax.tree.leaves(tree) for tree in (weights, gradients, mu, nu)]
    updated = [update(*arrays) for arrays in zip(*leaves, strict=True)]
    weights, mu, nu = (jax.tree.unflatten(treedef, list(column)) for column in zip(*updated, strict=True))
    return weights, mu, nu, steps + stepped.astype(jnp.int32), norm, stepped


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
