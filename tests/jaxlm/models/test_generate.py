"""Generation on a cache gives the text that whole forward passes give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import every_family
from tiny_models import ROWS, logits, tiny, tokens

from jaxlm.models.generate import filter_logits, generate

PROMPTS, LENGTHS = tokens(2, 16), np.array([16, 5], np.int32)


@every_family
def test_greedy_text_equals_whole_forward_passes_whatever_the_padding(family):
    model = tiny(family)
    made = np.asarray(generate(model, PROMPTS, LENGTHS, max_new_tokens=8))
    rows = np.zeros(ROWS, np.int32)
    for step in range(8):
        for row, length in enumerate(LENGTHS):
            rows[row, : length + step] = [*PROMPTS[row, :length], *made[row, :step]]
        last = logits(model, rows)[np.arange(2), LENGTHS + step - 1]
        np.testing.assert_array_equal(made[:, step], last.argmax(axis=-1))


def test_a_row_ends_at_its_first_end_token_and_the_others_go_on():
    model = tiny("llama")
    free = np.asarray(generate(model, PROMPTS, LENGTHS, max_new_tokens=8))
    end = int(free[1, 3])
    first = [list(row).index(end) if end in row else 8 for row in free]
    made = np.asarray(generate(model, PROMPTS, LENGTHS, max_new_tokens=8, eos_ids=(end, 7777)))
    for row, stop in enumerate(first):
        np.testing.assert_array_equal(made[row, :stop], free[row, :stop])
        assert (made[row, stop:] == end).all()


def test_an_empty_row_makes_nothing_and_waits_for_no_one():
    model = tiny("llama")
    free = np.asarray(generate(model, PROMPTS, LENGTHS, max_new_tokens=8, eos_ids=(7776, 7777)))
    made = np.asarray(generate(model, PROMPTS, np.array([16, 0]), max_new_tokens=8, eos_ids=(7776, 7777)))
    np.testing.assert_array_equal(made, [free[0], [7776] * 8])


def test_draws_depend_on_the_seed_alone():
    model = tiny("qwen2")
    draw = {"max_new_tokens": 8, "temperature": 1.5, "top_k": 20, "top_p": 0.95}
    greedy = generate(model, PROMPTS, LENGTHS, max_new_tokens=8)
    first = generate(model, PROMPTS, LENGTHS, seed=1, **draw)
    np.testing.assert_array_equal(first, generate(model, PROMPTS, LENGTHS, seed=1, **draw))
    assert (np.asarray(first) != np.asarray(generate(model, PROMPTS, LENGTHS, seed=2, **draw))).any()
    # Among so few that one is left, or nearly cold, a draw is the likeliest token.
    for only in ({"top_p": 1e-6}, {"temperature": 1e-6}):
        np.testing.assert_array_equal(generate(model, PROMPTS, LENGTHS, seed=3, **{**draw, **only}), greedy)


def test_filters_keep_the_fewest_likeliest_that_suffice():
    probability = jnp.asarray([[0.1, 0.5, 0.15, 0.25]])
    kept = lambda k, p: np.isfinite(filter_logits(jnp.log(probability), k, jnp.float32(p)))[0].tolist()  # noqa: E731
    assert kept(0, 1.0) == [True] * 4
    assert kept(2, 1.0) == [False, True, False, True]
    assert kept(0, 0.5) == [False, True, False, False]
    assert kept(0, 0.51) == [False, True, False, True]
    assert kept(99, 0.76) == [False, True, True, True]


def test_draws_follow_the_model_distribution():
    model = tiny("gpt2")
    prompt = np.repeat(PROMPTS[:1], 2000, axis=0)[:, :4]
    drawn = np.asarray(generate(model, prompt, np.full(2000, 4), max_new_tokens=1, temperature=0.7))[:, 0]
    rows = np.zeros(ROWS, np.int32)
    rows[:, :4] = prompt[:2]
    expected = jax.nn.softmax(logits(model, rows)[0, 3] / 0.7)
    seen = np.bincount(drawn, minlength=256) / 2000
    assert np.abs(seen - np.asarray(expected)).max() < 0.05


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        generate(tiny("llama"), PROMPTS, LENGTHS, **{"max_new_tokens": 1, **wrong})


def test_more_tokens_than_learned_positions_are_refused():
    with pytest.raises(ValueError, match="prompt and new tokens are 129, but the model has 128 positions"):
        generate(tiny("gpt2"), PROMPTS, LENGTHS, max_new_tokens=113)
