"""A ticket's output projections, re-fit so that the units it keeps make what all of them made of calibration text.

Layer by layer, o_proj and then down_proj are the ridge regression of what the full model's projection gives, in the
full model, on what comes into the ticket's, behind the layers that were re-fit before. The ridge draws towards the
weights that the ticket has. Nothing is trained, and nothing is added: it is the structured kind of what SparseGPT
(2301.00774) does, and as that it needs text and a pass of the full model, where a ticket by itself needs none.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxlm.data.batching.order import order
from jaxlm.families.config import ModelConfig
from twistjax.calibration import Walk, exact_products
from twistjax.training.central_model import TrainedRun
from twistjax.training.gather_scatter import corrected

RIDGE = 0.01
"""Of the mean diagonal of what comes in, as SparseGPT's damping."""
_KEYS = "self_attn.o_proj", "mlp.down_proj"


def repaired(run: TrainedRun, config: ModelConfig, ticket: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Returns a ticket's weights, its output projections re-fit on training rows of its run.

    Args:
        run: The run.
        config: The ticket's shapes.
        ticket: Its weights by path, any correction folded in.
        rows: How many of the training rows are read, a fixed random choice.
    """
    subnetworks, units = run.config.subnetworks, run.prepared.units
    full = corrected(run.weights, units, subnetworks.ladder[0], subnetworks.correction, full=True)
    text = run.prepared.train.tokens
    return refit(units.config, full, config, ticket, text[order(len(text), run.config.seed, 0)[:rows]])


def refit(
    full_config: ModelConfig,
    full: Mapping[str, Array],
    config: ModelConfig,
    ticket: Mapping[str, Array],
    tokens: Int32[np.ndarray, "rows length"],
) -> dict[str, Array]:
    """Returns a smaller model's weights, its output projections re-fit to those of the full model.

    Args:
        full_config: The full model's shapes.
        full: Its weights by path.
        config: The smaller model's, of as many layers; those at its ends that are as wide as the full model's stay.
        ticket: Its weights by path.
        tokens: int32 rows to read.
    """
    made: dict[str, list[Array]] = {}
    with exact_products():
        whole, small = Walk(full_config, full, tokens), Walk(config, ticket, tokens)
        for (stack, place), (own, at) in zip(whole.layers, small.layers, strict=True):
            wanted = whole.outputs(_KEYS, stack, place, whole.layer(stack, place))
            layer = small.layer(own, at)
            for key in _KEYS if own.name == "layers" else ():
                path = f"{key}.kernel"
                found = small.inputs(key, own, at, layer)
                bias = layer.get(f"{key}.bias", jnp.zeros(layer[path].shape[1], jnp.float32))
                sums = [_moments(come, one[key], bias) for come, one in zip(found, wanted, strict=True)]
                layer[path] = _solve(*jax.tree.map(lambda *parts: sum(parts), *sums), layer[path])
                made.setdefault(f"layers.{path}", []).append(layer[path])
            small.advance(own, at, layer)
    fitted = {path: jnp.stack(layers).astype(ticket[path].dtype) for path, layers in made.items()}
    return {**ticket, **fitted}


@jax.jit
def _moments(
    inputs: Float[Array, "tokens in"], outputs: Float[Array, "tokens out"], bias: Float[Array, "out"]
) -> tuple[Float[Array, "in in"], Float[Array, "in out"]]:
    return inputs.T @ inputs, inputs.T @ (outputs - bias[None, :])


@jax.jit
def _solve(
    second: Float[Array, "in in"], cross: Float[Array, "in out"], before: Float[Array, "in out"]
) -> Float[Array, "in out"]:
    ridge = RIDGE * jnp.mean(jnp.diagonal(second))
    regular = second + ridge * jnp.eye(second.shape[0], dtype=jnp.float32)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(regular), cross + ridge * before)
