"""Small models whose every weight matters: no norm is one and no bias zero."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from backbone.config import random_config
from backbone.transformer import Transformer


@cache
def tiny_state(family: str) -> nnx.State:
    rngs = nnx.Rngs(0)
    model = Transformer(random_config(family), dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
    noise = iter(jax.random.split(jax.random.key(1), 64))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), nnx.state(model))


def tiny(family: str, *, remat: str = "none", dtype=jnp.float32) -> Transformer:
    config = random_config(family)

    def build():
        return Transformer(config, dtype=dtype, param_dtype=jnp.float32, remat=remat, rngs=nnx.Rngs(0))

    # Mapped, so that Variables written to in one test are not those of the next.
    own_state = jax.tree.map(lambda x: x, tiny_state(family))
    return nnx.merge(nnx.split(nnx.eval_shape(build))[0], own_state)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 256, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _run(graph, state, *arguments):
    return nnx.merge(graph, state)(*arguments)


def run(model: Transformer, *arguments) -> np.ndarray:
    """Compiled forward pass."""
    return np.asarray(_run(*nnx.split(model), *arguments))


@partial(jax.jit, static_argnums=0)
def _logits(graph, state, tokens):
    model = nnx.merge(graph, state)
    return jnp.einsum("btd,vd->btv", model(tokens), model.head_kernel(), preferred_element_type=jnp.float32)


def logits(model: Transformer, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(_logits(*nnx.split(model), jnp.asarray(tokens, jnp.int32)))


def variables(model: Transformer) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(value.get_value()) for path, value in flat}
