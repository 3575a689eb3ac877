"""Rows that several texts share: where each lies, its positions, and attention within it.

A text reaches up to the beginning of the next one: what pads it follows it, so that no token of it sees the padding,
and no token of a row is outside of all texts.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.models.attend import attend, fused, fused_kernel_takes


class RowTexts(NamedTuple):
    """Texts of rows.

    Attributes:
        begins: int32 [rows, texts], the first token of each text of a row: 0, then ascending; `length` of the row for
            those that it lacks.
        owners: int32 [rows, tiles], whose each of the equal tiles of a row is. Two owners share no tile, and attention
            adds nothing of one's to another's, not even times 0. None is one owner.
    """

    begins: Int[Array, "rows texts"]
    owners: Int[Array, "rows tiles"] | None = None

    def numbers(self, length: int) -> Int[Array, "rows length"]:
        """Returns which text of its row each token is of, counted from 1."""
        at = jnp.arange(length, dtype=jnp.int32)
        return jnp.sum(self.begins[:, None, :] <= at[None, :, None], axis=2, dtype=jnp.int32)

    def positions(self, length: int) -> Int[Array, "rows length"]:
        """Returns how many tokens of its text stand before each token."""
        at = jnp.arange(length, dtype=jnp.int32)
        begun = jnp.where(self.begins[:, None, :] <= at[None, :, None], self.begins[:, None, :], 0)
        return at[None, :] - jnp.max(begun, axis=2)


def attend_texts(
    q: Float[Array, "rows length heads head_dim"],
    k: Float[Array, "rows length kv_heads head_dim"],
    v: Float[Array, "rows length kv_heads head_dim"],
    *,
    texts: RowTexts,
    scale: float,
    window: int | None = None,
) -> Float[Array, "rows length heads head_dim"]:
    """Causal attention of each text by itself; see `jaxlm.models.attend.attend` for the arguments.

    By cuDNN's kernel for packed texts, which reads nothing beyond a text, or by products of each tile with its row.
    """
    if texts.begins.shape[1] > 1 and _packed_kernel_takes(q):
        return _packed(q, k, v, texts.begins, scale=scale, window=window)
    # The backward pass chooses each tile's keys again, rather than keep as many copies of them as a row has tiles.
    again = jax.checkpoint(partial(_by_tiles, scale=scale, window=window))
    return again(q, k, v, texts)


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


def _by_tiles(q: Array, k: Array, v: Array, texts: RowTexts, *, scale: float, window: int | None) -> Array:
    rows, length, heads, head_dim = q.shape
    number = texts.numbers(length)
    owners = jnp.zeros((rows, 1), jnp.int32) if texts.owners is None else texts.owners
    tiles = owners.shape[1]
    tile = length // tiles
    # [rows, tiles of queries, keys]
    own = jnp.repeat(owners[:, :, None] == owners[:, None, :], tile, axis=2, total_repeat_length=length)

    def of_owner(x: Array) -> Array:
        # Chosen rather than multiplied: a neighbour that is not finite reaches neither the result nor a gradient.
        chosen = jnp.where(own[:, :, :, None, None], x[:, None], jnp.zeros((), x.dtype))
        return chosen.reshape(rows * tiles, length, *x.shape[2:])

    at = jnp.arange(length, dtype=jnp.int32)
    seen = number[:, :, None] == number[:, None, :]
    distance = at[:, None] - at[None, :]
    seen &= (distance >= 0 if window is None else (distance >= 0) & (distance < window))[None]
    queries, mask = q.reshape(rows * tiles, tile, heads, head_dim), seen.reshape(rows * tiles, 1, tile, length)
    products = fused if fused_kernel_takes(queries) else attend
    mixed = products(queries, of_owner(k), of_owner(v), scale=scale, mask=mask, is_causal=False)
    return mixed.reshape(q.shape)
