"""The loss against a teacher is a divergence of few outcomes, with the gradients of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.head import total_nll
from twistjax.distillation import SoftTargets, likeliest, total_soft_nll

COUNT, VOCAB, WIDTH, TOP = 12, 50, 16, 6


def problem():
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, teacher = (jax.random.normal(key, (COUNT, WIDTH)) for key in keys[:2])
    head = jax.random.normal(keys[2], (VOCAB, WIDTH)) * 0.3
    targets = jax.random.randint(keys[3], (COUNT,), 0, VOCAB, jnp.int32)
    return hidden, head, targets, teacher, jax.random.uniform(keys[4], (COUNT,))


def plain(hidden, head, targets, soft, weights, share, softcap=None):
    logits = hidden @ head.T
    log_q = jax.nn.log_softmax(logits if softcap is None else softcap * jnp.tanh(logits / softcap))
    rest = jnp.ones((COUNT, VOCAB), bool).at[jnp.arange(COUNT)[:, None], soft.tokens].set(False)
    left = jax.nn.logsumexp(jnp.where(rest, log_q, -jnp.inf), axis=1)
    p = jnp.exp(soft.log_probabilities)
    remaining = 1 - p.sum(1)
    own = jnp.take_along_axis(log_q, soft.tokens, axis=1)
    divergence = (p * (soft.log_probabilities - own)).sum(1) + remaining * (jnp.log(remaining) - left)
    nll = -jnp.take_along_axis(log_q, targets[:, None], axis=1)[:, 0]
    return (weights * (share * divergence + (1 - share) * nll)).sum()


@pytest.mark.parametrize(("share", "chunk", "softcap"), [(1.0, 4, None), (0.3, 12, 2.0)])
def test_loss_and_gradients_equal_the_plain_ones(share, chunk, softcap):
    hidden, head, targets, teacher, weights = problem()
    soft = likeliest(teacher, head, top=TOP, chunk=chunk)
    own = lambda h, w: total_soft_nll(h, w, targets, soft, weights, share=share, chunk=chunk, softcap=softcap)  # noqa: E731
    ours, slopes = jax.value_and_grad(own, (0, 1))(hidden, head)
    wanted, plains = jax.value_and_grad(lambda h, w: plain(h, w, targets, soft, weights, share, softcap), (0, 1))(
        hidden, head
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    for mine, theirs in zip(slopes, plains, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_and_any_other_less_than_of_the_whole_vocabulary():
    hidden, head, targets, teacher, weights = problem()
    same = likeliest(hidden, head, top=TOP, chunk=4)
    assert (np.diff(same.log_probabilities, axis=1) <= 0).all()
    own = lambda h, soft: total_soft_nll(h, head, targets, soft, weights, share=1.0, chunk=4)  # noqa: E731
    loss, slope = jax.value_and_grad(own)(hidden, same)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)
    log_p, log_q = (jax.nn.log_softmax(states @ head.T) for states in (teacher, hidden))
    whole = (weights * (jnp.exp(log_p) * (log_p - log_q)).sum(1)).sum()
    assert 0.1 < own(hidden, likeliest(teacher, head, top=TOP, chunk=4)) < whole


def test_what_counts_nothing_and_has_no_teacher_changes_nothing_and_a_share_of_zero_is_the_plain_loss():
    hidden, head, targets, teacher, weights = problem()
    soft = likeliest(teacher, head, top=TOP, chunk=12)
    empty = SoftTargets(soft.tokens.at[0].set(0), soft.log_probabilities.at[0].set(0.0))
    weights = weights.at[0].set(0.0)
    ours = [total_soft_nll(hidden, head, targets, one, weights, share=0.5, chunk=12) for one in (soft, empty)]
    assert np.isfinite(ours[0]) and ours[0] == ours[1]
    alone = total_soft_nll(hidden, head, targets, soft, weights, share=0.0, chunk=12)
    np.testing.assert_allclose(alone, total_nll(hidden, head, targets, weights, chunk=12), rtol=1e-6)
