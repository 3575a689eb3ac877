"""Adapters and bases to test with."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter
from altojax.adapters.target_parameters import match
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import adaptable
from jaxlm.models.transformer import Transformer


def random_adapter(
    config: ModelConfig,
    target_modules: str | list[str] = "all-linear",
    *,
    target_parameters: tuple[str, ...] = (),
    rank=4,
    alpha=8.0,
    use_rslora=False,
    seed=0,
) -> tuple[AdapterSpec, Adapter]:
    """An adapter large enough to move every logit."""
    modules = match(
        target_modules if isinstance(target_modules, str) else tuple(target_modules), target_parameters, config
    )
    spec = AdapterSpec("base", rank, alpha, use_rslora, 0.0, target_modules, modules, target_parameters)
    random = np.random.default_rng(seed)
    adapter = {}
    for key, layers in modules.items():
        projection = adaptable(config)[key]
        a, b = projection.empty_adapter(rank)
        for place in map(projection.layers.index, layers):
            a[place] = random.normal(0, projection.fan_in**-0.5, a.shape[1:])
            b[place] = random.normal(0, 0.05, b.shape[1:])
        adapter[key] = a, b
    return spec, adapter


def random_base(config: ModelConfig, seed: int = 0, dtype=jnp.float32) -> Transformer:
    return Transformer(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(seed))


def logits_of(model: Transformer, tokens: np.ndarray, routing=None) -> np.ndarray:
    return np.asarray(_logits(model, jnp.asarray(tokens, jnp.int32), routing))


@nnx.jit
def _logits(model: Transformer, tokens: jax.Array, routing) -> jax.Array:
    hidden = model(tokens, routing=routing)
    return model.logits(hidden.astype(jnp.float32))
