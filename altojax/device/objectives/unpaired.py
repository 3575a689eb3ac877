"""Losses of answers of which each is desirable or not, for themselves; names and meanings are those of TRL.

A sample is two rows: an answer behind its prompt, and behind the same prompt an answer to another one. How much
likelier the second rows have become under a trial, on average, is an estimate of the KL divergence from its reference.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from altojax.config.objectives import LOSS_TYPES


class Answers(NamedTuple):
    """What a loss reads of answers; float32 [answers] each.

    Attributes:
        ratios: Log-ratios to the reference, in nats.
        signs: 1 of desirable answers, -1 of others, 0 of what is no answer alone.
        kl: The estimate of the trial that each is of, at least 0.
    """

    ratios: Float[Array, " answers"]
    signs: Float[Array, " answers"]
    kl: Float[Array, " answers"]


def answer_losses(answers: Answers, numbers: Mapping[str, Float[Array, " answers"]]) -> Float[Array, " answers"]:
    """Computes both losses and takes each answer's own.

    Sources: KTO 2402.01306, equation 7; the unpaired APO-zero of 2408.06266, in which no KL divergence counts.

    Args:
        answers: Of any trials.
        numbers: `PREFERENCE_KEYS` of the trial of each.
    """
    counts = numbers["loss_type"] == LOSS_TYPES.index("kto")
    ahead = answers.ratios - jnp.where(counts, jax.lax.stop_gradient(answers.kl), 0.0)
    weight = jnp.where(answers.signs > 0, numbers["desirable_weight"], numbers["undesirable_weight"])
    return weight * jax.nn.sigmoid(-answers.signs * numbers["beta"] * ahead)


def is_unpaired(kinds: Float[Array, " samples"]) -> Array:
    """Whether losses, by their places in `LOSS_TYPES`, are of answers alone; bool [samples]."""
    return (kinds == LOSS_TYPES.index("kto")) | (kinds == LOSS_TYPES.index("apo_zero_unpaired"))
