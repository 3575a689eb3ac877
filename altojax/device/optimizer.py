"""AdamW over slots, and running averages of what it makes.

Every hyper-parameter is an array with one entry a slot, so trials come and go as data.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import slot_updates
from pallas_kernels.moments import Blocks, Moment
from pallas_kernels.slot_updates import Half, Trained, Update, Visited

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
        rank: int32, of the adapter; what lies beyond is zero.
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
    rank: A
    objective: Mapping[str, A]


def empty_hyper(slots: int, objective: Sequence[str] = ()) -> Hyper[np.ndarray]:
    """Returns numpy arrays [slots] of harmless values for slots without a trial.

    Args:
        slots: Of the run.
        objective: Names of numbers that the objective reads.
    """
    whole = {"schedule", "warmup_steps", "decay_steps", "total_steps", "rank"}
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


class Gradients(NamedTuple):
    """The gradients of adapters.

    Attributes:
        stacks: Pytree of float32 [layer, place, in, out].
        places: int32 [slots], the place of each slot's, beyond the last for slots that have none; None is the slots'
            own order.
    """

    stacks: Any
    places: Int[Array, " slots"] | None = None


class Stepped(NamedTuple):
    """Slots after an optimizer step.

    Attributes:
        weights: Pytree of float32 [layer, slot, in, out].
        mu: First moments, likewise.
        nu: Second moments, likewise.
        steps: int32 [slots], optimizer steps taken.
        norm: float32 [slots], of the gradient before clipping, where a slot was to step.
        stepped: bool [slots], which did: a slot with a non-finite gradient skips its update.
        averages: Running averages of the weights, one a window.
    """

    weights: Any
    mu: Any
    nu: Any
    steps: Int[Array, " slots"]
    norm: Float[Array, " slots"]
    stepped: Bool[Array, " slots"]
    averages: tuple[Any, ...] = ()


def squares(gradients: Gradients, visited: Visited) -> Float[Array, " slots"]:
    """Returns the sum of squares of the gradient of each slot that takes part."""
    return slot_updates.squares(_halves(gradients.stacks), gradients.places, visited)


def gathered(sums: Any, gradients: Gradients, begin: Bool[Array, " slots"], hyper: Hyper[Array]) -> Any:
    """Returns gradients added to their sums, which begin anew in some slots.

    Args:
        sums: Pytree of float32 [layer, slot, in, out].
        gradients: To be added.
        begin: Those slots.
        hyper: Of the trials; slots without one gather nothing.
    """
    visited = Visited(hyper.total_steps > 0, hyper.rank)
    pairs = zip(_halves(sums), jax.tree.leaves(gradients.stacks), strict=True)
    return _like(sums, [slot_updates.gathered(half, new, gradients.places, begin, visited) for half, new in pairs])


def adamw(
    weights: Any,
    gradients: Gradients,
    mu: Any,
    nu: Any,
    steps: Int[Array, " slots"],
    hyper: Hyper[Array],
    apply: Bool[Array, " slots"],
    squares: Callable[[Gradients, Visited], Array] = squares,
    averages: Sequence[Any] = (),
    windows: Sequence[float] = (),
) -> Stepped:
    """One AdamW step of each slot by itself (Loshchilov & Hutter 2019), after clipping the slot's own gradient norm.

    It moves each slot's running averages by polynomial decay (Shamir & Zhang 2013) towards its new weights: with the
    window η, avg_t = avg_{t−1} + (η + 1) / (t + η) · (w_t − avg_{t−1}), about the last 1 / (η + 1) of the run so far.
    The first step takes the weights as they are, so an average needs neither a reset nor a correction.

    Args:
        weights: Pytree of float32 [layer, slot, in, out].
        gradients: Of the weights.
        mu: First moments, likewise or as `pallas_kernels.moments` keeps them.
        nu: Second moments, likewise.
        steps: int32 [slots], optimizer steps already taken.
        hyper: Per-slot hyper-parameters.
        apply: Which slots take a step; the others keep everything bit for bit.
        squares: Sums the squares of each slot's gradients.
        averages: Running averages, likewise, one a window.
        windows: η of each, at least 0, which is the plain mean.
    """
    norm = jnp.sqrt(squares(gradients, Visited(apply, hyper.rank)))
    stepped = apply & jnp.isfinite(norm)
    limited = (hyper.max_grad_norm > 0) & (norm > hyper.max_grad_norm)
    rate, count = learning_rate(hyper, steps), (steps + 1).astype(jnp.float32)
    steps = steps + stepped.astype(jnp.int32)
    update = Update(
        clip=jnp.where(limited, hyper.max_grad_norm / jnp.where(limited, norm, 1), 1),
        beta1=hyper.beta1,
        beta2=hyper.beta2,
        correction1=1 - hyper.beta1**count,
        correction2=1 - hyper.beta2**count,
        epsilon=hyper.epsilon,
        rate=rate,
        decay=hyper.weight_decay,
        shares=tuple(share_of_newest(window, steps) for window in windows),
    )
    parts = [*map(_moments, (mu, nu)), jax.tree.leaves(gradients.stacks)]
    means = [jax.tree.leaves(one) for one in averages]
    new = [
        slot_updates.adamw(
            Trained(half.stack, m, v, tuple(mean)),
            half.rank_axis,
            gradient,
            gradients.places,
            update,
            Visited(stepped, hyper.rank),
            steps,
        )
        for half, m, v, gradient, *mean in zip(_halves(weights), *parts, *means, strict=True)
    ]
    w = _like(weights, [one.weights for one in new])
    mu, nu = _like(weights, [one.mu for one in new]), _like(weights, [one.nu for one in new])
    moved = tuple(_like(weights, [one.averages[at] for one in new]) for at in range(len(windows)))
    return Stepped(w, mu, nu, steps, norm, stepped, moved)


def _halves(tree: Any) -> list[Half]:
    """Returns the arrays of a pytree, whose names end in ``a`` or ``b``."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)][-1]
        found.append(Half(leaf, 1 if name.endswith("a") else 0))
    return found


def _moments(tree: Any) -> list[Moment]:
    return jax.tree.leaves(tree, is_leaf=lambda one: isinstance(one, Blocks))


def _like(tree: Any, leaves: Sequence[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def share_of_newest(window: float, steps: Int[Array, " slots"]) -> Float[Array, " slots"]:
    """Returns (η + 1) / (t + η) of the window η at step t, counted from 1."""
    return jnp.float32(window + 1) / (jnp.maximum(steps, 1).astype(jnp.float32) + jnp.float32(window))
