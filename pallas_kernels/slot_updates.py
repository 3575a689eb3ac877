"""An optimizer's passes over stacked adapters, for some of their slots: what lies in the others stays bit for bit.

Arrays are float32 [layer, slot, in, out], a stack for each half of a projection's adapter. Which slots take part is
data. On an NVIDIA GPU a Triton kernel visits those alone, in place, and of each no more than its rank; elsewhere XLA
visits all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.moments import Moment, dither_of, kept, read

Stack = Float[Array, "layers slots in out"]
Places = Int[Array, " slots"] | None
"""The place of each slot along the second axis of gradients, beyond the last for slots that have none, whose gradients
are 0; None is the slots' own order."""


class Half(NamedTuple):
    """A half of a projection's adapters, or what is kept of each of its numbers.

    Attributes:
        stack: Its array.
        rank_axis: Axis of the rank within [in, out]: 1 for A, 0 for B.
    """

    stack: Stack
    rank_axis: int


class Visited(NamedTuple):
    """The slots that are visited.

    Attributes:
        which: bool [slots].
        ranks: int32 [slots]; A's columns and B's rows from a slot's rank on are zero, and may be passed over.
    """

    which: Bool[Array, " slots"]
    ranks: Int[Array, " slots"]


class Update(NamedTuple):
    """The numbers of an AdamW step; float32 [slots] each.

    Attributes:
        clip: Factor of the gradient.
        beta1: Of the first moment.
        beta2: Of the second moment.
        correction1: 1 − beta1 ^ step.
        correction2: 1 − beta2 ^ step.
        epsilon: Of the denominator.
        rate: Learning rate.
        decay: Decoupled weight decay.
        shares: What each running average takes of its distance from the new weights.
    """

    clip: Float[Array, " slots"]
    beta1: Float[Array, " slots"]
    beta2: Float[Array, " slots"]
    correction1: Float[Array, " slots"]
    correction2: Float[Array, " slots"]
    epsilon: Float[Array, " slots"]
    rate: Float[Array, " slots"]
    decay: Float[Array, " slots"]
    shares: tuple[Float[Array, " slots"], ...] = ()


class Trained(NamedTuple):
    """A half of a projection's adapters, with what its optimizer keeps.

    Attributes:
        weights: The half.
        mu: First moments, in float32 or fewer bits.
        nu: Second moments, likewise.
        averages: Running averages of the weights.
    """

    weights: Stack
    mu: Moment
    nu: Moment
    averages: tuple[Stack, ...] = ()


def fused() -> bool:
    """Whether kernels do it on this machine."""
    return not IMPLEMENTATIONS["triton"].device()


def squares(halves: Sequence[Half], places: Places, visited: Visited) -> Float[Array, " slots"]:
    """Returns the sum of squares of each slot that takes part; what it is of others does not matter.

    Args:
        halves: Whose squares.
        places: Where in them each slot's lie.
        visited: The slots.
    """
    if fused():
        from pallas_kernels.triton import updates

        return updates.squares(halves, places, visited)
    sums = [jnp.sum(jnp.square(half.stack), axis=(0, 2, 3)) for half in halves]
    return _placed(sum(sums[1:], sums[0]), places)


def gathered(sums: Half, gradients: Stack, places: Places, begin: Bool[Array, " slots"], visited: Visited) -> Stack:
    """Returns sums of gradients with others added.

    Args:
        sums: So far.
        gradients: To be added.
        places: Where in them each slot's lie.
        begin: Slots whose sum begins anew.
        visited: Slots that may have any.
    """
    if fused():
        from pallas_kernels.triton import updates

        return updates.gathered(sums, gradients, places, begin, visited)
    return jnp.where(_over(begin), jnp.zeros_like(sums.stack), sums.stack) + _placed(gradients, places, axis=1)


def adamw(
    trained: Trained,
    rank_axis: int,
    gradients: Stack,
    places: Places,
    update: Update,
    visited: Visited,
    steps: Int[Array, " slots"] | None = None,
) -> Trained:
    """Returns arrays after an AdamW step (Loshchilov & Hutter 2019) of the slots that take part.

    It is taken with the new moments before they are rounded to what is kept of them.

    Args:
        trained: Before.
        rank_axis: As of `Half`.
        gradients: Of the weights.
        places: Where in them each slot's lie.
        update: The numbers of the step.
        visited: Slots that take it.
        steps: Of each slot, which dither moments that are kept in fewer bits; None takes the nearest.
    """
    if fused() and not in_fewer_bits(trained):
        from pallas_kernels.triton import updates

        # The kernel moves one average on the way.
        one_average = trained._replace(averages=trained.averages[:1])
        new = updates.adamw(
            one_average, rank_axis, gradients, places, update._replace(shares=update.shares[:1]), visited
        )
        others = _averages(trained.averages[1:], new.weights, update.shares[1:], visited)
        return new._replace(averages=(*new.averages, *others))
    clip, beta1, beta2, correction1, correction2, epsilon, rate, decay = map(_over, update[:-1])
    take = _over(visited.which)
    gradients = _placed(gradients, places, axis=1) * clip
    mu = beta1 * read(trained.mu) + _over(1 - update.beta1) * gradients
    nu = beta2 * read(trained.nu) + _over(1 - update.beta2) * jnp.square(gradients)
    if in_fewer_bits(trained):
        shape = trained.weights.shape
        first, second = (0.5 if steps is None else dither_of(shape, steps, salt) for salt in (1, 2))
        moments: tuple[Moment, Moment] = kept(mu, trained.mu, first), kept(nu, trained.nu, second)
        moments = jax.tree.map(lambda one, old: jnp.where(take, one, old), moments, (trained.mu, trained.nu))
    else:
        old = read(trained.mu), read(trained.nu)
        # Made before the weights, which read them: a moment that is donated is then written in place.
        mu, nu = jax.lax.optimization_barrier((jnp.where(take, mu, old[0]), jnp.where(take, nu, old[1])))
        moments = (mu, nu)
    direction = (mu / correction1) / (jnp.sqrt(nu / correction2) + epsilon)
    weights = jnp.where(take, trained.weights - rate * (direction + decay * trained.weights), trained.weights)
    return Trained(weights, *moments, _averages(trained.averages, weights, update.shares, visited))


def in_fewer_bits(trained: Trained) -> bool:
    """Whether moments are kept in fewer bits than float32, for which there is no kernel."""
    return any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves((trained.mu, trained.nu)))


def _averages(
    averages: Sequence[Stack], weights: Stack, shares: Sequence[Float[Array, " slots"]], visited: Visited
) -> tuple[Stack, ...]:
    take = _over(visited.which)
    return tuple(
        jnp.where(take, old + _over(share) * (weights - old), old) for share, old in zip(shares, averages, strict=True)
    )


def _placed(values: Array, places: Places, *, axis: int = 0) -> Array:
    """Returns the values of all slots, 0 for those without a place."""
    if places is None:
        return values
    last = values.shape[axis] - 1
    found = jnp.take(values, jnp.minimum(places, last), axis=axis, mode="clip")
    has = places <= last
    return jnp.where(has if axis == 0 else _over(has), found, 0)


def _over(values: Array) -> Array:
    return values[None, :, None, None]
