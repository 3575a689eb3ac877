"""Causal attention: rows of one text or of several, sliding windows, and a key-value cache for generation."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxlm.families.config import ModelConfig
from jaxlm.families.projections import KIND_NAMED
from jaxlm.families.rope import rotate
from jaxlm.families.schedule import LayerKind
from jaxlm.models.layers import Linear, Norm, add_projections, normalised, project, random_weight
from jaxlm.models.mixers.attend import attend
from jaxlm.models.mixers.mixer import LayerCache, Positions
from jaxlm.models.mixers.row_texts import RowTexts, attend_texts


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
        if config.attention_sinks:
            self.sinks = nnx.Param(random_weight(rngs, (config.num_heads,), layers, param_dtype))
        if config.qk_norm:
            norm: dict[str, Any] = {"kind": "rms", "eps": config.norm_eps, "offset": config.norm_offset}
            queries, keys = (config.q_width, config.kv_width) if config.wide_qk_norm else (config.head_dim,) * 2
            self.q_norm = Norm(queries, layers=layers, param_dtype=param_dtype, **norm)
            self.k_norm = Norm(keys, layers=layers, param_dtype=param_dtype, **norm)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        places: Positions,
        routing: Any,
        kind: LayerKind,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch length width"], LayerCache | None]:
        """Mixes tokens; see `Mixer`. The cache holds keys and values, indexed by position."""
        config = self.config
        batch, length, _ = x.shape
        if config.fused_qkv:
            ends = tuple(accumulate(KIND_NAMED["c_attn"].out_widths(config)))[:-1]
            q, k, v = jnp.split(self.c_attn(x, routing), ends, axis=-1)
        else:
            own = () if config.keys_are_values else (self.v_proj,)
            q, k, *values = project((self.q_proj, self.k_proj, *own), x, routing)
            v = values[0] if values else k
        if config.wide_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.reshape(batch, length, config.num_heads, config.head_dim)
        k = k.reshape(batch, length, config.num_kv_heads, config.head_dim)
        v = v.reshape(batch, length, config.num_kv_heads, config.head_dim)
        if config.qk_norm and not config.wide_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if config.v_norm:
            v = normalised(v, config.norm_eps).astype(v.dtype)
        if kind.rotation is not None:
            cos, sin = places.angles[kind.rotation]
            q, k = (rotate(one, cos, sin, interleaved=config.rope_interleaved) for one in (q, k))
        if config.query_growth:
            lengths = (places.positions // config.rope.original_max_position).astype(jnp.float32)
            growth = 1.0 + config.query_growth * jnp.log1p(lengths)
            q = (q.astype(jnp.float32) * growth[:, :, None, None]).astype(q.dtype)
        mixed, cache = self._mix(q, k, v, places, kind.window, cache)
        return self.o_proj(mixed.reshape(batch, length, config.q_width), routing), cache

    @staticmethod
    def cache_shapes(config: ModelConfig, batch: int, length: int) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of a layer's keys and values."""
        return ((batch, length, config.num_kv_heads, config.head_dim),) * 2

    def _mix(
        self, q: Array, k: Array, v: Array, places: Positions, window: int | None, cache: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        config = self.config
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        sinks = self.sinks.get_value() if config.attention_sinks else None
        if cache is not None:
            rows = jnp.arange(q.shape[0], dtype=jnp.int32)[:, None]
            k = cache[0].at[rows, places.positions].set(k.astype(cache[0].dtype))
            v = cache[1].at[rows, places.positions].set(v.astype(cache[1].dtype))
            mask = cache_mask(places.positions, k.shape[1], window)
            bounds: dict[str, Any] = {"scale": scale, "softcap": config.attention_softcap, "sinks": sinks}
            return attend(q, k.astype(q.dtype), v.astype(q.dtype), mask=mask, is_causal=False, **bounds), (k, v)
        texts = places.texts
        if texts is None and (config.attention_softcap is not None or sinks is not None):
            texts = RowTexts(jnp.zeros((q.shape[0], 1), jnp.int32))
        causal: Callable[..., Array] = attend
        if texts is not None:
            causal = partial(attend_texts, texts=texts, softcap=config.attention_softcap, sinks=sinks)
        return causal(q, k, v, scale=scale, window=window if window and q.shape[1] > window else None), None


def cache_mask(
    positions: Int[Array, "batch length"], cached: int, window: int | None
) -> Bool[Array, "batch 1 length cached"]:
    """The mask of cached keys for each query: those at or before its position, within the window."""
    queries = positions[:, None, :, None]
    keys = jnp.arange(cached, dtype=jnp.int32)[None, None, None, :]
    seen = keys <= queries
    return seen if window is None else seen & (queries - keys < window)
