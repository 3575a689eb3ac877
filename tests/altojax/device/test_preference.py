"""Losses of preference pairs, against published and computed numbers; and what they do where numbers are extreme."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altojax.config.objectives import LOSS_TYPES, PREFERENCE_KEYS, UNPAIRED
from altojax.device.objectives.preference import Pairs, pair_losses
from altojax.device.objectives.unpaired import Answers, answer_losses

PAIRED = [kind for kind in LOSS_TYPES if kind not in UNPAIRED]


def numbers(kinds: list[str], **more: float) -> dict[str, jax.Array]:
    """What losses read of the trials of some pairs."""
    values = {key: jnp.full(len(kinds), more.get(key, 0.0), jnp.float32) for key in PREFERENCE_KEYS}
    return values | {"loss_type": jnp.array([float(LOSS_TYPES.index(kind)) for kind in kinds])}


def drawn() -> Pairs:
    """The draws of Tunix' test of its DPO loss: token log-probabilities, then sums of the reference."""
    random = np.random.RandomState(0)
    logps, references = (random.normal(0, 5, (8, 4)).sum(1).reshape(2, 4).T for _ in range(2))
    return Pairs(jnp.asarray(logps, jnp.float32), jnp.asarray(references, jnp.float32), jnp.full((4, 2), 4.0))


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        pytest.param("sigmoid", {"beta": 0.1}, 0.753059, id="dpo, published by Tunix"),
        pytest.param("sigmoid", {"beta": 0.1, "label_smoothing": 0.3}, 0.925447, id="cdpo, published by Tunix"),
        pytest.param("robust", {"beta": 0.1, "label_smoothing": 0.3}, 0.3220915, id="robust"),
        pytest.param("hinge", {"beta": 0.1}, 0.9489532, id="hinge"),
        pytest.param("ipo", {"beta": 0.1}, 31.3802793, id="ipo"),
        pytest.param("sigmoid_norm", {"beta": 0.1}, 0.6468945, id="sigmoid_norm"),
        pytest.param("simpo", {"beta": 2.0, "simpo_gamma": 1.0}, 1.4522914, id="simpo"),
    ],
)
def test_losses_have_the_values_that_are_known_of_them(kind, more, expected):
    found = float(pair_losses(drawn(), numbers([kind] * 4, **more)).losses.mean())
    assert found == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_orpo_is_the_log_odds_ratio_of_mean_log_probabilities():
    pairs = Pairs(
        jnp.array([[-2.0, -6.0], [-0.02, -3.0]]), jnp.full((2, 2), jnp.nan), jnp.array([[4.0, 3.0], [2.0, 2.0]])
    )
    found = pair_losses(pairs, numbers(["orpo"] * 2, beta=0.3))
    p = np.exp(np.asarray(pairs.logps, np.float64) / np.asarray(pairs.tokens))
    odds = np.log(p / (1 - p))
    assert np.asarray(found.losses) == pytest.approx(0.3 * np.log1p(np.exp(odds[:, 1] - odds[:, 0])), rel=1e-5)
    assert np.asarray(found.rewards) == pytest.approx(0.3 * np.log(p), rel=1e-6)


def test_pairs_of_all_losses_at_once_get_what_each_gets_alone_and_finite_gradients():
    """Padding among them, an empty slot, and a reference that losses without one do not read."""
    kinds = [*PAIRED, "sigmoid"]
    logps = jnp.array([[-2.0, -6.0]] * len(PAIRED) + [[0.0, 0.0]])
    references = jnp.array(
        [[math.nan] * 2 if kind in ("simpo", "orpo") else [-3.0, -4.0] for kind in PAIRED] + [[0, 0]]
    )
    tokens = jnp.array([[4.0, 3.0]] * len(PAIRED) + [[0.0, 0.0]])
    said = numbers(kinds, beta=0.2, label_smoothing=0.1, simpo_gamma=0.4)
    said = {key: values.at[-1].set(0.0) for key, values in said.items()}

    def total(logps: jax.Array) -> jax.Array:
        return pair_losses(Pairs(logps, references, tokens), said).losses.sum()

    gradient = jax.grad(total)(logps)
    assert np.isfinite(gradient).all() and np.abs(gradient[:-1]).min() > 0
    together = pair_losses(Pairs(logps, references, tokens), said).losses
    for place in range(len(kinds)):
        one = slice(place, place + 1)
        own = Pairs(logps[one], references[one], tokens[one])
        assert pair_losses(own, {key: values[one] for key, values in said.items()}).losses[0] == together[place]


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_of_the_reference_itself_dpo_is_ln_2_to_the_bit_and_margins_are_0(beta):
    logps = drawn().logps
    found = pair_losses(Pairs(logps, logps, jnp.full((4, 2), 4.0)), numbers(["sigmoid"] * 4, beta=beta))
    assert found.losses.tolist() == [np.float32(math.log(2))] * 4 and not found.rewards.any()


def test_kto_moves_answers_away_from_the_divergence_to_which_no_gradient_flows():
    """Equation 7 of its paper, and what is padding stays finite."""
    answers = Answers(jnp.array([2.0, -1.0, 0.0]), jnp.array([1.0, -1.0, 0.0]), jnp.array([0.5, 0.5, 0.0]))
    said = numbers(["kto"] * 3, beta=0.4, desirable_weight=1.2, undesirable_weight=0.7)
    found = answer_losses(answers, said)
    assert found[0] == pytest.approx(1.2 * (1 - 1 / (1 + math.exp(-0.4 * 1.5))), rel=1e-6)
    assert found[1] == pytest.approx(0.7 * (1 - 1 / (1 + math.exp(-0.4 * 1.5))), rel=1e-6)
    gradient = jax.grad(lambda ratios, kl: answer_losses(Answers(ratios, answers.signs, kl), said).sum(), (0, 1))
    of_ratios, of_kl = gradient(answers.ratios, answers.kl)
    assert of_ratios[0] < 0 < of_ratios[1] and of_ratios[2] == 0 and not of_kl.any()
