"""The two ends of a block whose heads or neurons are shared out over a mesh axis (Megatron-LM, 1909.08053, section 3).

Each device computes with its own columns, then its own rows, and what they make is added up: once forward, where the
block ends, and once backward, where it begins. Sums are taken in float32 and rounded once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def enter(x: Array, axis: str) -> Array:
    """Hands every device of `axis` the same `x`; backward, adds up what each of them found of its gradient."""
    return x


def _enter_forward(x: Array, axis: str) -> tuple[Array, None]:
    return x, None


def _enter_backward(axis: str, _: None, dx: Array) -> tuple[Array]:
    return (_sum(dx, axis),)


enter.defvjp(_enter_forward, _enter_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def leave(y: Array, axis: str) -> Array:
    """Adds up what the devices of `axis` made; backward, hands each of them the whole gradient."""
    return _sum(y, axis)


def _leave_forward(y: Array, axis: str) -> tuple[Array, None]:
    return _sum(y, axis), None


def _leave_backward(axis: str, _: None, dy: Array) -> tuple[Array]:
    return (dy,)


leave.defvjp(_leave_forward, _leave_backward)


def _sum(x: Array, axis: str) -> Array:
    return jax.lax.psum(x.astype(jnp.float32), axis).astype(x.dtype)
