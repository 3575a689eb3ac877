"""Small models whose every weight matters: no norm is one and no bias zero."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.families.registry import random_config
from jaxlm.models.transformer import Transformer

ROWS = (2, 24)


@cache
def tiny_state(family: str) -> nnx.State:
    config, random = random_config(family), np.random.default_rng(0)

    def drawn(path, like):
        mean = 1.0 - config.norm_offset if "scale" in map(str, path) else 0.0
        return jnp.asarray(random.normal(mean, 0.1, like.shape), jnp.float32)

    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))))
    return nnx.from_flat_state([(path, like.replace(drawn(path, like))) for path, like in flat])


@cache
def _graph(family: str, remat: str, scan_layers: bool, dtype) -> nnx.GraphDef:
    def build():
        config = random_config(family)
        kinds = {"dtype": dtype, "param_dtype": jnp.float32, "remat": remat, "scan_layers": scan_layers}
        return Transformer(config, **kinds, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(build))[0]


def tiny(family: str, *, remat: str = "none", scan_layers: bool = True, dtype=jnp.float32) -> Transformer:
    # Mapped, so that Variables written to in one test are not those of the next.
    own_state = jax.tree.map(lambda x: x, tiny_state(family))
    return nnx.merge(_graph(family, remat, scan_layers, dtype), own_state)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 256, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _run(graph, state, *arguments):
    return nnx.merge(graph, state)(*arguments)


def run(model: Transformer, *arguments) -> np.ndarray:
    """The forward pass. Compiled once a shape: tests keep to rows of `ROWS` where they can."""
    return np.asarray(_run(*nnx.split(model), *arguments))


def logits(model: Transformer, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(model.logits(run(model, tokens.astype(np.int32))))


def variables(model: Transformer) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(value.get_value()) for path, value in flat}
