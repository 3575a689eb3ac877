"""Causal attention: plain rows, packed rows, sliding windows, and a key-value cache for generation."""

from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxlm.families.config import ModelConfig
from jaxlm.families.projections import KIND_NAMED
from jaxlm.families.rope import rotate
from jaxlm.models.layers import Linear, Norm, add_projections, project

Angles = tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]
KeysValues = tuple[Float[Array, "batch cached kv_heads head_dim"], Float[Array, "batch cached kv_heads head_dim"]]


class Positions(NamedTuple):
    """Positions of a batch's tokens; the same for every layer.

    Attributes:
        positions: int32, counted from each text's own beginning.
        angles: Cosine and sine for rotary positions, else None.
        angles_local: The same for sliding layers, where they differ.
        mask: Which key each query may see within its row's causal triangle; None is all.
    """

    positions: Int[Array, "batch length"]
    angles: Angles | None
    angles_local: Angles | None
    mask: Bool[Array, "batch 1 length keys"] | None


def attend(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float,
    window: int | None = None,
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
        mask: Which keys each query may see besides; every query must see at least one.
        is_causal: Queries see keys up to their own index.
    """
    if is_causal and _fused_kernel_takes(q):
        # Under strict promotion JAX's own code fails here: it asks for promote_types(bfloat16, float32).
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(
                q,
                k,
                v,
                mask=mask,
                scale=scale,
                is_causal=True,
                local_window_size=None if window is None else (window - 1, 0),
                implementation="cudnn",
            )
    batch, length, heads, head_dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], head_dim).astype(jnp.float32)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k.astype(jnp.float32)) * scale
    seen = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    distance = jnp.arange(length, dtype=jnp.int32)[:, None] - jnp.arange(k.shape[1], dtype=jnp.int32)[None, :]
    if is_causal:
        seen &= (distance >= 0)[None, None]
    if window is not None:
        seen &= (distance < window)[None, None]
    weights = jax.nn.softmax(jnp.where(seen[:, :, None], scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, v.astype(jnp.float32))
    return mixed.reshape(q.shape).astype(q.dtype)


def _fused_kernel_takes(q: Float[Array, "batch length heads head_dim"]) -> bool:
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


class Attention(nnx.Module):
    """Projections, optional q/k norms, rotation, attention, output projection."""

    c_attn: Linear
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear

    def __init__(self, config: ModelConfig, *, layers: int, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        kinds: dict[str, Any] = {"layers": layers, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        add_projections(self, "self_attn", config, **kinds)
        if config.qk_norm:
            norm: dict[str, Any] = {"kind": "rms", "eps": config.norm_eps, "offset": config.norm_offset}
            self.q_norm = Norm(config.head_dim, layers=layers, param_dtype=param_dtype, **norm)
            self.k_norm = Norm(config.head_dim, layers=layers, param_dtype=param_dtype, **norm)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        places: Positions,
        routing: Any,
        sliding: Bool[Array, ""] | None,
        cache: KeysValues | None = None,
    ) -> tuple[Float[Array, "batch length width"], KeysValues | None]:
        """Mixes tokens.

        Args:
            x: Normed residual stream.
            places: Where the tokens stand.
            routing: Passed on to every projection.
            sliding: Whether this layer slides, where layers differ; else None.
            cache: Keys and values of earlier tokens, indexed by position; None outside generation.

        Returns:
            What to add to the residual stream, and the cache with this call's keys and values written in.
        """
        config = self.config
        batch, length, _ = x.shape
        if config.fused_qkv:
            ends = tuple(accumulate(KIND_NAMED["c_attn"].out_widths(config)))[:-1]
            q, k, v = jnp.split(self.c_attn(x, routing), ends, axis=-1)
        else:
            q, k, v = project((self.q_proj, self.k_proj, self.v_proj), x, routing)
        q = q.reshape(batch, length, config.num_heads, config.head_dim)
        k = k.reshape(batch, length, config.num_kv_heads, config.head_dim)
        v = v.reshape(batch, length, config.num_kv_heads, config.head_dim)
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if places.angles is not None:
            cos, sin = places.angles
            if places.angles_local is not None and sliding is not None:
                cos = jnp.where(sliding, places.angles_local[0], cos)
                sin = jnp.where(sliding, places.angles_local[1], sin)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed, cache = self._mix(q, k, v, places, sliding, cache)
        return self.o_proj(mixed.reshape(batch, length, config.q_width), routing), cache

    def _mix(
        self, q: Array, k: Array, v: Array, places: Positions, sliding: Array | None, cache: KeysValues | None
    ) -> tuple[Array, KeysValues | None]:
        config = self.config
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        if cache is not None:
            rows = jnp.arange(q.shape[0], dtype=jnp.int32)[:, None]
            k = cache[0].at[rows, places.positions].set(k.astype(cache[0].dtype))
            v = cache[1].at[rows, places.positions].set(v.astype(cache[1].dtype))
            mask = cache_mask(places.positions, k.shape[1], config.sliding_window, sliding)
            return attend(q, k.astype(q.dtype), v.astype(q.dtype), scale=scale, mask=mask, is_causal=False), (k, v)
        window = config.sliding_window
        if window is None or q.shape[1] <= window:
            return attend(q, k, v, scale=scale, mask=places.mask), None
        if sliding is None:
            return attend(q, k, v, scale=scale, mask=places.mask, window=window), None
        mixed = jax.lax.cond(
            sliding,
            lambda q, k, v: attend(q, k, v, scale=scale, mask=places.mask, window=window),
            lambda q, k, v: attend(q, k, v, scale=scale, mask=places.mask),
            q,
            k,
            v,
        )
        return mixed, None


def cache_mask(
    positions: Int[Array, "batch length"], cached: int, window: int | None, sliding: Bool[Array, ""] | None
) -> Bool[Array, "batch 1 length cached"]:
    """The mask of cached keys for each query: those at or before its position, within the window where it applies."""
    queries = positions[:, None, :, None]
    keys = jnp.arange(cached, dtype=jnp.int32)[None, None, None, :]
    seen = keys <= queries
    if window is None:
        return seen
    near = queries - keys < window
    return seen & (near if sliding is None else near | ~sliding)
