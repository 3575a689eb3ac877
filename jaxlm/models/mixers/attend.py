"""The products of attention: grouped queries against keys, with a float32 softmax, on any device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlm.models.head import softcapped


def attend(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    mask: Bool[Array, "batch 1 length keys"] | None = None,
    is_causal: bool = True,
) -> Float[Array, "batch length heads head_dim"]:
    """Grouped-query attention with a float32 softmax; cuDNN's fused kernel where it takes these shapes.

    Args:
        q: Queries; query head h reads key head ``h // (heads / kv_heads)``.
        k: Keys.
        v: Values.
        scale: Multiplies the scores.
        window: A query sees this many newest keys, itself included; None is all.
        softcap: As `ModelConfig.attention_softcap`, which cuDNN's kernel does not know.
        sinks: Of each head, a score that takes part in the softmax and has no value; as little known there.
        mask: Which keys each query may see besides; every query must see at least one.
        is_causal: Queries see keys up to their own index.
    """
    if is_causal and softcap is None and sinks is None and fused_kernel_takes(q):
        return fused(q, k, v, scale=scale, window=window, mask=mask)
    batch, length, heads, head_dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], head_dim).astype(jnp.float32)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k.astype(jnp.float32)) * scale
    scores = softcapped(scores, softcap)
    seen = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    distance = jnp.arange(length, dtype=jnp.int32)[:, None] - jnp.arange(k.shape[1], dtype=jnp.int32)[None, :]
    if is_causal:
        seen &= (distance >= 0)[None, None]
    if window is not None:
        seen &= (distance < window)[None, None]
    scores = jnp.where(seen[:, :, None], scores, -jnp.inf)
    mixed = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores, axis=-1), v.astype(jnp.float32))
    if sinks is not None:
        apart = sinks.astype(jnp.float32).reshape(1, *scores.shape[1:3], 1)
        kept = jax.nn.sigmoid(jax.nn.logsumexp(scores, axis=-1) - apart)  # of the softmax, what is not the sink's
        mixed = mixed * kept.transpose(0, 3, 1, 2)[..., None]
    return mixed.reshape(q.shape).astype(q.dtype)


def fused(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float,
    window: int | None = None,
    mask: Bool[Array, "batch 1 length keys"] | None = None,
    is_causal: bool = True,
) -> Float[Array, "batch length heads head_dim"]:
    """`attend` by cuDNN's kernel, where `fused_kernel_takes` the queries."""
    # Under strict promotion JAX's own code fails here: it asks for promote_types(bfloat16, float32).
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            scale=scale,
            is_causal=is_causal,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )


def fused_kernel_takes(q: Float[Array, "batch length heads head_dim"]) -> bool:
    """Whether cuDNN computes attention of these queries here."""
    widest = fused_heads()
    if widest is None or q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[1] % 2:
        return False
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= widest


def fused_heads() -> int | None:
    """Returns the widest head whose attention cuDNN computes here; None where there is no cuDNN.

    Its kernels are made for NVIDIA GPUs; an AMD GPU's compute capability is a name such as gfx942, and no number.
    """
    if jax.default_backend() != "gpu":
        return None
    try:
        capability = float(getattr(jax.local_devices()[0], "compute_capability", ""))
    except ValueError:
        return None
    return 256 if capability >= 9.0 else 128
