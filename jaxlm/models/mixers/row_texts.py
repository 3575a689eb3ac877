"""Rows that several texts share: where each lies, its positions, and attention within it.

A text reaches up to the beginning of the next one: what pads it follows it, so that no token of it sees the padding,
and no token of a row is outside of all texts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.models.mixers.attend import attend, fused, fused_kernel_takes

LARGEST = 1e15
"""Numbers above it are taken for infinite ones: products of two of them, over a head, are finite below it."""


class RowTexts(NamedTuple):
    """Texts of rows.

    Attributes:
        begins: int32 [rows, texts], the first token of each text of a row: 0, then ascending; `length` of the row for
            those that it lacks.
        owners: int32 [rows, tiles], whose each of the equal tiles of a row is. Two owners share no tile, and attention
            adds nothing of one's to another's, not even times 0. None is one owner.
        sizes: int32 [rows, texts], tokens of each text without those that pad it. None is without padding.
    """

    begins: Int[Array, "rows texts"]
    owners: Int[Array, "rows tiles"] | None = None
    sizes: Int[Array, "rows texts"] | None = None

    def numbers(self, length: int) -> Int[Array, "rows length"]:
        """Returns which text of its row each token is of, counted from 1."""
        at = jnp.arange(length, dtype=jnp.int32)
        return jnp.sum(self.begins[:, None, :] <= at[None, :, None], axis=2, dtype=jnp.int32)

    def positions(self, length: int) -> Int[Array, "rows length"]:
        """Returns how many tokens of its text stand before each token."""
        at = jnp.arange(length, dtype=jnp.int32)
        begun = jnp.where(self.begins[:, None, :] <= at[None, :, None], self.begins[:, None, :], 0)
        return at[None, :] - jnp.max(begun, axis=2)

    def lengths(self, length: int) -> Int[Array, "rows length"]:
        """Returns how many tokens the text of each token has."""
        sizes = self.sizes
        if sizes is None:
            sizes = jnp.diff(self.begins, append=jnp.full_like(self.begins[:, :1], length), axis=1)
        return jnp.take_along_axis(sizes, self.numbers(length) - 1, axis=1)


def attend_texts(
    q: Float[Array, "rows length heads head_dim"],
    k: Float[Array, "rows length kv_heads head_dim"],
    v: Float[Array, "rows length kv_heads head_dim"],
    *,
    texts: RowTexts,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
) -> Float[Array, "rows length heads head_dim"]:
    """Causal attention of each text by itself; see `jaxlm.models.mixers.attend.attend` for the arguments.

    By cuDNN's kernel for packed texts, which reads nothing beyond a text, or by products with whole rows and a mask.
    """
    if texts.begins.shape[1] > 1 and softcap is None and sinks is None and _packed_kernel_takes(q):
        return _packed(q, k, v, texts.begins, scale=scale, window=window)
    return _masked(scale, window, softcap, q, k, v, texts, sinks)


def _packed(q: Array, k: Array, v: Array, begins: Array, *, scale: float, window: int | None) -> Array:
    # The one way to it: `jax.nn.dot_product_attention` does not hand on where packed texts begin.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    length = q.shape[1]
    ends = jnp.concatenate((begins[:, 1:], jnp.full_like(begins[:, :1], length)), axis=1)
    lacking = begins >= length
    lengths = jnp.where(lacking, -1, ends - begins)
    # The kernel takes one offset more than texts, and fills in the end of everything itself.
    offsets = jnp.pad(jnp.where(lacking, -1, begins), ((0, 0), (0, 1)), constant_values=-1)
    # Under strict promotion JAX's own code fails here.
    with jax.numpy_dtype_promotion("standard"):
        return cudnn.dot_product_attention(
            q,
            k,
            v,
            None,
            None,
            lengths,
            lengths,
            offsets,
            offsets,
            scale=scale,
            mask_type=cudnn.MaskType.PADDING_CAUSAL,
            sliding_window_length=window,
        )


def _packed_kernel_takes(q: Array) -> bool:
    """Whether cuDNN computes attention of packed texts here, which it does on Hopper and later."""
    if not fused_kernel_takes(q):
        return False
    return float(jax.local_devices()[0].compute_capability) >= 9.0


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _masked(
    scale: float,
    window: int | None,
    softcap: float | None,
    q: Array,
    k: Array,
    v: Array,
    texts: RowTexts,
    sinks: Array | None,
) -> Array:
    """Attention under a mask; where anything of an owner is not finite, all of it is not, and nothing of others.

    A mask alone would not do: 0 times a neighbour's NaN is NaN. Sinks are frozen.
    """
    sick = _sick((q, k, v), texts)
    q, k, v = _sound((q, k, v), sick)
    return _spoilt(_blocks(q, k, v, texts, sinks, scale, window, softcap), sick)


def _masked_forward(
    scale: float,
    window: int | None,
    softcap: float | None,
    q: Array,
    k: Array,
    v: Array,
    texts: RowTexts,
    sinks: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    return _masked(scale, window, softcap, q, k, v, texts, sinks), (q, k, v, texts, sinks)


def _masked_backward(
    scale: float, window: int | None, softcap: float | None, kept: tuple[Any, ...], pull: Array
) -> tuple[Array, Array, Array, None, None]:
    q, k, v, texts, sinks = kept
    sick = _sick((q, k, v, pull), texts)
    q, k, v, pull = _sound((q, k, v, pull), sick)
    _, back = jax.vjp(lambda q, k, v: _blocks(q, k, v, texts, sinks, scale, window, softcap), q, k, v)
    dq, dk, dv = (_spoilt(one, sick) for one in back(pull))
    return dq, dk, dv, None, None


_masked.defvjp(_masked_forward, _masked_backward)


def _sick(arrays: Sequence[Array], texts: RowTexts) -> Bool[Array, "rows length"]:
    """Returns the tokens of those owners of whose tokens, in the same row, any is not finite or about to overflow."""
    rows, length = arrays[0].shape[:2]
    owners = jnp.zeros((rows, 1), jnp.int32) if texts.owners is None else texts.owners
    sound = [jnp.all(jnp.abs(one) < LARGEST, axis=(2, 3)) for one in arrays]
    tiles = ~jnp.all(jnp.stack(sound).reshape(len(sound), *owners.shape, -1), axis=(0, 3))
    own = owners[:, :, None] == owners[:, None, :]
    sick = jnp.any(own & tiles[:, None, :], axis=2)
    return jnp.repeat(sick, length // owners.shape[1], axis=1, total_repeat_length=length)


def _sound(arrays: Sequence[Array], sick: Array) -> list[Array]:
    return [jnp.where(sick[:, :, None, None], jnp.zeros((), one.dtype), one) for one in arrays]


def _spoilt(array: Array, sick: Array) -> Array:
    return jnp.where(sick[:, :, None, None], jnp.full((), jnp.nan, array.dtype), array)


def _blocks(
    q: Array,
    k: Array,
    v: Array,
    texts: RowTexts,
    sinks: Array | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Array:
    """Returns attention, for a block of queries at a time with the keys up to its end."""
    length = q.shape[1]
    at, number = jnp.arange(length, dtype=jnp.int32), texts.numbers(length)
    distance = at[:, None] - at[None, :]
    seen = (distance >= 0 if window is None else (distance >= 0) & (distance < window))[None]
    seen &= number[:, :, None] == number[:, None, :]
    products: Callable[..., Array] = partial(attend, scale=scale, is_causal=False)
    block = max(64, -(-length // 8))
    if softcap is not None or sinks is not None:
        # Nothing else computes these scores on an accelerator: a block's exist at a time, in the backward pass, too.
        products = jax.checkpoint(partial(products, softcap=softcap, sinks=sinks))
        block = max(128, -(-length // 16))
    elif fused_kernel_takes(q):
        products, block = partial(fused, scale=scale, is_causal=False), length
    found = []
    for first in range(0, length, block):
        end = min(first + block, length)
        mask = seen[:, None, first:end, :end]
        found.append(products(q[:, first:end], k[:, :end], v[:, :end], mask=mask))
    return jnp.concatenate(found, axis=1)
