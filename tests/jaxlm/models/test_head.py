"""The chunked loss is the plain loss, in a fraction of its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.models.head import target_nll, total_nll


def problem(count, vocab=50, width=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(count), 4)
    hidden = jax.random.normal(keys[0], (count, width)).astype(dtype)
    head = jax.random.normal(keys[1], (vocab, width)).astype(dtype)
    targets = jax.random.randint(keys[2], (count,), 0, vocab, jnp.int32).at[0].set(vocab - 1)
    return hidden, head, targets, jax.random.normal(keys[3], (count,))


def plain_nll(hidden, head, targets):
    logits = jnp.einsum("pd,vd->pv", hidden, head, preferred_element_type=jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]


@pytest.mark.parametrize(("chunks", "chunk"), [(1, 1), (3, 4), (5, 1)])
def test_loss_and_gradient_equal_the_plain_ones(chunks, chunk):
    hidden, head, targets, weight = problem(chunks * chunk)
    ours, pull_ours = jax.vjp(lambda h: target_nll(h, head, targets, chunk=chunk), hidden)
    plain, pull_plain = jax.vjp(lambda h: plain_nll(h, head, targets), hidden)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull_ours(weight)[0], pull_plain(weight)[0], rtol=1e-5, atol=1e-5)


def test_bounded_logits_have_the_loss_and_the_gradients_of_plain_ones():
    hidden, head, targets, weight = problem(12)

    def plain(hidden, head):
        logits = 2.0 * jnp.tanh(hidden @ head.T / 2.0)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]

    ours, pull_ours = jax.vjp(lambda h: target_nll(h, head, targets, chunk=4, softcap=2.0), hidden)
    wanted, pull_wanted = jax.vjp(plain, hidden, head)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull_ours(weight)[0], pull_wanted(weight)[0], rtol=1e-5, atol=1e-5)
    slopes = jax.grad(lambda h, w: total_nll(h, w, targets, weight, chunk=4, softcap=2.0), (0, 1))(hidden, head)
    for one, other in zip(slopes, pull_wanted(weight), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@jax.jit
def loss_and_gradient(hidden, head, targets, weight, live=None):
    loss, pull = jax.vjp(lambda h: target_nll(h, head, targets, chunk=4, live=live), hidden)
    return loss, pull(weight)[0]


@given(st.integers(0, 12))
def test_chunks_of_padding_alone_are_not_computed_and_targets_before_them_keep_every_bit(live):
    hidden, head, targets, weight = problem(12)
    chunks = -(-live // 4) * 4
    padding = jnp.arange(12) >= chunks
    whole = loss_and_gradient(hidden, head, targets, weight)
    spoilt = jnp.where(padding[:, None], jnp.nan, hidden)
    found = loss_and_gradient(spoilt, head, targets, jnp.where(padding, 0.0, weight), jnp.int32(live))
    for one, wanted in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one[:chunks], wanted[:chunks])
        assert not one[chunks:].any()
    assert loss_and_gradient._cache_size() == 2  # with padding and without, whatever there is of it


def test_half_precision_is_as_good_as_half_precision_allows():
    hidden, head, targets, weight = problem(24, dtype=jnp.bfloat16)
    ours, pull_ours = jax.vjp(lambda h: target_nll(h, head, targets, chunk=8), hidden)
    exact = (hidden.astype(jnp.float32), head.astype(jnp.float32), targets)
    plain, pull_plain = jax.vjp(lambda h: plain_nll(h, *exact[1:]), exact[0])
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    gradient = pull_ours(weight)[0]
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), pull_plain(weight)[0], rtol=0.03, atol=0.03)


def test_logits_far_from_zero_overflow_nothing():
    hidden, head, targets, weight = problem(6)
    ours, pull = jax.vjp(lambda h: target_nll(h, head * 1e3, targets, chunk=3), hidden)
    np.testing.assert_allclose(ours, plain_nll(hidden, head * 1e3, targets), rtol=1e-5, atol=1e-3)
    assert jnp.isfinite(pull(weight)[0]).all()


def shapes_in(jaxpr):
    """Shapes of every value computed anywhere in a jaxpr."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ())
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def test_the_logits_of_all_targets_never_exist_together():
    hidden, head, targets, weight = problem(64, vocab=1000, width=16)

    def step(hidden):
        return jnp.sum(weight * target_nll(hidden, head, targets, chunk=8))

    compiled = jax.jit(jax.grad(step)).lower(hidden).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 1000 * 4
    largest = max(np.prod(shape) for shape in shapes_in(jax.make_jaxpr(jax.grad(step))(hidden).jaxpr))
    assert largest == 8 * 1000


def test_a_training_step_multiplies_by_the_head_twice():
    hidden, head, targets, weight = problem(64, vocab=1000, width=32)
    step = jax.jit(jax.grad(lambda h: jnp.sum(weight * target_nll(h, head, targets, chunk=64))))
    flops = step.lower(hidden).compile().cost_analysis()["flops"]
    product = 2 * 64 * 1000 * 32
    assert 2 * product <= flops < 2.6 * product


def test_targets_that_leave_a_broken_chunk_are_refused():
    hidden, head, targets, _ = problem(12)
    with pytest.raises(ValueError, match="12 targets do not come in whole chunks of 5"):
        target_nll(hidden, head, targets, chunk=5)
    with pytest.raises(ValueError, match="whole chunks of 0"):
        target_nll(hidden, head, targets, chunk=0)


@pytest.mark.parametrize(("chunks", "chunk"), [(1, 7), (3, 4), (5, 1)])
def test_a_trained_heads_loss_and_both_gradients_equal_the_plain_ones(chunks, chunk):
    hidden, head, targets, weight = problem(chunks * chunk)
    weight = weight.at[0].set(0.0)

    def plain(hidden, head):
        return jnp.sum(plain_nll(hidden, head, targets) * weight)

    def ours(hidden, head):
        return total_nll(hidden, head, targets, weight, chunk=chunk)

    np.testing.assert_allclose(ours(hidden, head), plain(hidden, head), rtol=1e-5, atol=1e-5)
    value, slopes = jax.value_and_grad(ours, (0, 1))(hidden, head)
    np.testing.assert_allclose(value, plain(hidden, head), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(slopes, jax.grad(plain, (0, 1))(hidden, head), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_every_worker_has_the_gradient_of_its_own_head():
    hidden, head, targets, weight = problem(12)
    heads = jnp.stack([head, 2 * head])

    def ours(head):
        return total_nll(hidden, head, targets, weight, chunk=4)

    together = jax.vmap(jax.grad(ours))(heads)
    for one, alone in zip(together, heads, strict=True):
        np.testing.assert_allclose(one, jax.grad(ours)(alone), rtol=1e-6, atol=1e-6)


def test_a_float32_head_under_half_precision_states_gets_a_float32_gradient():
    hidden, head, targets, weight = problem(8)
    slopes = jax.grad(lambda h, w: total_nll(h, w, targets, weight, chunk=8), (0, 1))(hidden.astype(jnp.bfloat16), head)
    assert [slope.dtype for slope in slopes] == [jnp.bfloat16, jnp.float32]
