"""Where a text's length decides how positions rotate, it is that of the text itself, wherever the text lies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.families.registry import random_config
from jaxlm.families.rope import RopeConfig
from jaxlm.models.generate import generate
from jaxlm.models.mixers.row_texts import RowTexts
from jaxlm.models.transformer import Transformer

ROPE = RopeConfig(
    scaling="longrope", original_max_position=10, short_factors=(1.0,) * 8, long_factors=tuple(range(3, 11))
)
LENGTH, NEW = 16, 6
TOKENS = np.random.default_rng(0).integers(3, 256, (2, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    config = replace(random_config("llama"), rope=ROPE, num_layers=2)
    return Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def states(model):
    """Hidden states of one row of two texts; compiled once."""
    graph, state = nnx.split(model)

    @jax.jit
    def of_row(tokens, begins, sizes):
        return nnx.merge(graph, state)(tokens[None], RowTexts(begins[None], None, sizes[None]))[0]

    return of_row


def alone(states, tokens):
    """What one text comes to, padded with something."""
    row = np.append(tokens, np.full(LENGTH - len(tokens), 7)).astype(np.int32)
    return np.asarray(states(row, np.array([0, LENGTH]), np.array([len(tokens), 0])))[: len(tokens)]


def test_texts_that_share_a_row_rotate_as_each_does_alone_and_padding_counts_for_none(states):
    short, long = TOKENS[0, :4], TOKENS[1, :11]
    row = np.concatenate((short, [7], long)).astype(np.int32)
    both = np.asarray(states(row, np.array([0, 5]), np.array([4, 11])))
    np.testing.assert_allclose(both[:4], alone(states, short), atol=1e-5)
    np.testing.assert_allclose(both[5:], alone(states, long), atol=1e-5)
    # A token sees only those before it, and yet whether ten or eleven stand in the text is all the difference.
    assert np.abs(alone(states, long)[:10] - alone(states, long[:10])).max() > 0.01


def test_a_text_that_grows_beyond_its_context_goes_on_as_the_longer_text_that_it_is(model, states):
    lengths = np.array([8, 3])
    made = np.asarray(generate(model, TOKENS[:, :8], lengths, max_new_tokens=NEW))
    head = np.asarray(model.head_kernel())
    for row, length in enumerate(lengths):
        text = TOKENS[row, :length]
        for token in made[row]:
            assert token == (alone(states, text)[-1] @ head.T).argmax()
            text = np.append(text, token)
    assert lengths[0] + NEW > ROPE.original_max_position >= lengths[1] + NEW
