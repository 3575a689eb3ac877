"""Units are ranked by what they do to what the model makes of text."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.families.registry import random_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from twistjax.calibration import calibrate
from twistjax.comparison.pruning.structured import choose_units
from twistjax.training.gather_scatter import ATTENTION_OUT, MLP_OUT
from twistjax.training.importance import gradient_scores, rank_by_activations
from twistjax.training.local_training import text_nll
from twistjax.training.units import kept_of, units_of

CONFIG = random_config("qwen2")
TOKENS = np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.int32)
TARGETS = np.ones_like(TOKENS, bool)


def start():
    model = Transformer(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return weights_by_path(model, jnp.float32)


def test_the_first_units_by_activations_are_those_that_pruning_keeps():
    units, weights = units_of(CONFIG, [0.5], 16), start()
    order = rank_by_activations(units, weights, TOKENS)
    kept = choose_units(weights, units, 0.5, "wanda", calibrate(CONFIG, weights, TOKENS))
    blocks = np.sort(np.asarray(order.blocks)[:, : kept_of(units.blocks, 0.5)], axis=1)
    np.testing.assert_array_equal(kept.neurons[:, ::16] // 16, blocks)
    assert (np.diff(order.blocks, axis=1) < 0).any()


def test_a_score_by_gradients_is_the_square_of_the_slope_of_the_loss_in_a_units_output():
    units, weights = units_of(CONFIG, [0.5], 16), start()
    model = Functional(CONFIG)
    scores = gradient_scores(units, model, weights, [(TOKENS[:2], TARGETS[:2]), (TOKENS[2:], TARGETS[2:])])
    width, step = CONFIG.head_dim * (1 if units.in_groups else units.group), 0.05

    @jax.jit
    def loss(output, tokens, targets):
        total, count = text_nll(model, {**weights, **output}, tokens, targets)
        return total / count

    whole = (
        (MLP_OUT, (1, slice(32, 48)), scores.blocks[1, 2]),
        (ATTENTION_OUT, (0, slice(width)), scores.heads[0, 0, 0]),
    )
    for path, unit, found in whole:
        squares = []
        for first in (0, 2):
            ends = [
                loss({path: weights[path].at[unit].multiply(size)}, TOKENS[first : first + 2], TARGETS[:2])
                for size in (1 + step, 1 - step)
            ]
            squares.append((float(ends[0] - ends[1]) / (2 * step)) ** 2)
        np.testing.assert_allclose(found, sum(squares), rtol=0.02)
