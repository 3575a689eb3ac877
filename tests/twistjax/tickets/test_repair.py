"""A ticket that is re-fit makes what the full model made, as far as its units can."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.families.registry import random_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from twistjax.tickets.repair import refit
from twistjax.tickets.settings import TicketSettings
from twistjax.training.gather_scatter import ATTENTION_OUT, MLP_OUT, gather
from twistjax.training.units import units_of

CONFIG = replace(random_config("gpt2"), num_layers=2)
TOKENS = np.random.default_rng(0).integers(0, 256, (16, 32)).astype(np.int32)


def with_twins():
    """A model whose later heads and neurons do what the earlier ones do, and add something else with it."""
    model = Transformer(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    draw, weights = np.random.default_rng(1), weights_by_path(model, jnp.float32)
    for path, value in weights.items():
        if path.startswith("layers.") and "norm" not in path:
            weights[path] = value = jnp.asarray(draw.normal(0, 0.3, value.shape), jnp.float32)
        if "c_attn" in path or "up_proj" in path:
            parts = jnp.split(value, 3 if "c_attn" in path else 1, axis=-1)
            firsts = [jnp.split(part, 2, axis=-1)[0] for part in parts]
            weights[path] = jnp.concatenate([half for first in firsts for half in (first, first)], axis=-1)
    return weights


@pytest.mark.parametrize("protected", [(0, 0), (1, 0)])
def test_what_goes_is_made_up_for_where_what_stays_can(protected):
    units, full = units_of(CONFIG, [0.5], 16, protected), with_twins()
    half = jnp.broadcast_to(jnp.arange(units.heads // 2, dtype=jnp.int32), (units.layers, 1, units.heads // 2))
    blocks = jnp.broadcast_to(jnp.arange(units.blocks // 2, dtype=jnp.int32), (units.layers, units.blocks // 2))
    small, ticket = units.subnetwork(0.5), gather(full, units.kept(half, blocks), units)
    fitted = refit(CONFIG, full, small, ticket, TOKENS)
    states = lambda config, weights: np.asarray(Functional(config).bind(weights)(jnp.asarray(TOKENS[:2])))  # noqa: E731
    wanted = states(CONFIG, full)
    before, after = (np.abs(states(small, weights) - wanted).mean() for weights in (ticket, fitted))
    assert after < 0.05 * before
    changed = {path for path, value in ticket.items() if not np.array_equal(value, fitted[path])}
    assert changed == {ATTENTION_OUT, MLP_OUT}


def test_rows_without_a_repair_are_refused():
    with pytest.raises(UserError, match=r"repair_rows without repair, expected repair=true, too"):
        load_config(TicketSettings, {"repair_rows": 3}, source="tickets")
    assert load_config(TicketSettings, {"repair_rows": 3, "repair": True}, source="tickets").repair_rows == 3
