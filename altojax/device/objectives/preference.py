"""Losses of preference pairs: direct preference optimization (DPO) and its kin, each trial by its own.

Names and meanings are those of TRL. A pair is two rows, the chosen answer and the rejected one, each behind its prompt;
those of an answer alone are as altojax/device/objectives/unpaired.py says. A row's log-probability is the sum over its
answer; the length of an answer is the number of its targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from altojax.config.objectives import LOSS_TYPES, PREFERENCE_KEYS, REFERENCE_FREE, UNPAIRED, LossType
from altojax.device.batch import Part, TokenRow
from altojax.device.objectives.objective import Outputs, Terms
from altojax.device.objectives.unpaired import Answers, answer_losses, is_unpaired
from altojax.early_exit.metric import BETA


@runtime_checkable
class ReferredRow(TokenRow, Protocol):
    """A row of a pair."""

    @property
    def answer_tokens(self) -> int:
        """Its targets."""

    @property
    def reference(self) -> float:
        """Log-probability of its answer under the reference, in nats; nan where it is not known."""

    @property
    def sign(self) -> int:
        """Of an answer alone 1 where it is desirable and else -1; 0 of a pair."""


class Pairs(NamedTuple):
    """What a loss reads of pairs; float32 [pairs, 2] each, the chosen answer first.

    Attributes:
        logps: Log-probabilities of the answers.
        references: The same under the reference.
        tokens: Lengths of the answers.
    """

    logps: Float[Array, "pairs 2"]
    references: Float[Array, "pairs 2"]
    tokens: Float[Array, "pairs 2"]


class PairLosses(NamedTuple):
    """The loss of each pair, and what TRL reports of it; float32 [pairs] or [pairs, 2].

    Attributes:
        losses: Without the term of supervised fine-tuning.
        rewards: β times the log-ratio to the reference, or of losses without one times the mean log-probability.
        logps: Log-probabilities; of losses without a reference their means over tokens.
    """

    losses: Float[Array, " pairs"]
    rewards: Float[Array, "pairs 2"]
    logps: Float[Array, "pairs 2"]


def pair_losses(pairs: Pairs, numbers: Mapping[str, Float[Array, " pairs"]]) -> PairLosses:
    """Computes every loss and takes each pair's own.

    Sources: DPO 2305.18290, with label smoothing (cDPO); hinge of SLiC 2305.10425; IPO 2310.12036, averaged over
    tokens; robust DPO 2403.00409; ``sigmoid_norm`` of Tülu 3 2411.15124; SimPO 2405.14734; ORPO 2403.07691, without its
    term of supervised fine-tuning.

    Args:
        pairs: Of any trials.
        numbers: `PREFERENCE_KEYS` of the trial of each; 0 in slots without a trial.
    """
    kind, beta, smoothing, gamma = (numbers[key] for key in ("loss_type", "beta", "label_smoothing", "simpo_gamma"))

    def of(*names: LossType) -> Any:
        return jnp.any(jnp.stack([kind == LOSS_TYPES.index(name) for name in names]), axis=0)

    tokens = jnp.maximum(pairs.tokens, 1.0)
    means = pairs.logps / tokens
    ratios = pairs.logps - jnp.where(of(*REFERENCE_FREE)[:, None], 0.0, pairs.references)
    # What another loss would divide by or take the logarithm of must not be 0: its gradient would be 0 times infinity.
    odds = jnp.where(of("orpo")[:, None] & (pairs.tokens > 0), means, -1.0)
    log_odds = odds - _log1mexp(odds)
    margin = beta * _ahead(jnp.where(of("ipo", "sigmoid_norm", "simpo")[:, None], ratios / tokens, ratios))
    margin = jnp.where(of("simpo"), margin - gamma, jnp.where(of("orpo"), _ahead(log_odds), margin))
    right, flipped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    unbiased = ((1 - smoothing) * right - smoothing * flipped) / jnp.where(of("robust"), 1 - 2 * smoothing, 1.0)
    scale = jnp.where(beta > 0, beta, 1.0)
    losses = jnp.select(
        [of("hinge"), of("ipo"), of("robust"), of("orpo")],
        [jax.nn.relu(1 - margin), jnp.square(margin / scale - 0.5 / scale), unbiased, beta * right],
        (1 - smoothing) * right + smoothing * flipped,
    )
    free = of(*REFERENCE_FREE)[:, None]
    return PairLosses(losses, beta[:, None] * jnp.where(free, means, ratios), jnp.where(free, means, pairs.logps))


def _ahead(values: Float[Array, "pairs 2"]) -> Float[Array, " pairs"]:
    return values[:, 0] - values[:, 1]


def _log1mexp(x: Float[Array, "pairs 2"]) -> Float[Array, "pairs 2"]:
    """Returns log(1 - exp(x)) of negative numbers, by the branch that cancels nothing (Mächler 2012)."""
    small = x < -0.6931471805599453
    far, near = jnp.where(small, x, -1.0), jnp.where(small, -0.5, x)
    return jnp.where(small, jnp.log1p(-jnp.exp(far)), jnp.log(-jnp.expm1(near)))


@dataclass(frozen=True)
class Preference:
    """The mean over pairs of the loss of their trial's ``loss_type``, and weighted the chosen answers' cross-entropy.

    That is the mean over the tokens of all chosen answers of an effective batch, as TRL's ``sft`` is; ORPO has it with
    a weight of 1 at least.
    """

    group: int = 2
    trial_values: tuple[str, ...] = PREFERENCE_KEYS

    def count(self, rows: Sequence[TokenRow]) -> int:
        """Returns the number of pairs."""
        return len(rows) // self.group

    def row_values(self, part: Part) -> dict[str, list[float]]:
        """Returns references and lengths of answers, and the weights of pairs and of a chosen answer's tokens.

        Of answers alone also their signs, and a weight by which the desirable ones have a mean of their own, and the
        others: that of the part, times all answers of the whole over those of the same sign.
        """
        rows: list[Any] = [*part.rows]
        whole: list[Any] = [*(part.whole or part.rows)]
        tokens = sum(row.answer_tokens for row in whole[:: self.group])
        signs = [row.sign for row in whole[:: self.group]]
        shares = {sign: len(signs) / signs.count(sign) for sign in set(signs)}
        per_token = part.weight * self.count(whole) / tokens if tokens else 0.0
        return {
            "reference": [row.reference for row in rows],
            "tokens": [float(row.answer_tokens) for row in rows],
            "weight": [part.weight] * len(rows),
            "token_weight": [per_token] * len(rows),
            "sign": [float(row.sign) for row in rows],
            "sign_weight": [part.weight * shares[row.sign] for row in rows],
        }

    def __call__(self, outputs: Outputs) -> Terms:
        """Returns the loss and metrics of each slot, and the negative log-probability of each row.

        Metrics are TRL's, and ``dpo_loss``: DPO's at β = `BETA`, which is of one kind whatever a trial's own loss. An
        answer alone is compared with one that is as likely as under the reference.
        """
        targets = outputs.targets()
        nll = outputs.over_rows(targets, targets.nll)
        numbers = {name: outputs.trial_values(name) for name in self.trial_values}
        pairs = Pairs(-nll, outputs.row_values("reference"), outputs.row_values("tokens"))
        weight, token_weight = outputs.row_values("weight")[:, 0], outputs.row_values("token_weight")[:, 0]
        sign, sign_weight = outputs.row_values("sign")[:, 0], outputs.row_values("sign_weight")[:, 0]
        found = pair_losses(pairs, numbers)
        alone, ratios = sign != 0, pairs.logps - pairs.references
        kl = outputs.of_slots(jnp.maximum(outputs.means(ratios[:, 1], weight), 0.0))
        losses = answer_losses(Answers(ratios[:, 0], sign, kl), numbers)
        losses = jnp.where(is_unpaired(numbers["loss_type"]), losses, found.losses)
        orpo = (numbers["loss_type"] == LOSS_TYPES.index("orpo")).astype(jnp.float32)
        sft = outputs.over_samples(nll[:, 0] * (numbers["sft_weight"] + orpo), token_weight)
        loss = outputs.over_samples(losses, weight) + sft
        ahead = jnp.where(alone, sign * found.rewards[:, 0], _ahead(found.rewards))
        # Without any reference they are all 0, and means over tokens are compared.
        known = jnp.any(pairs.references != 0, axis=1, keepdims=True)
        ratios = jnp.where(known, ratios, pairs.logps / jnp.maximum(pairs.tokens, 1.0))
        own_weight = jnp.where(alone, sign_weight, weight)
        chosen_weight, rejected_weight = jnp.where(sign < 0, 0.0, own_weight), jnp.where(sign > 0, 0.0, own_weight)
        rejected = jnp.where(alone, 0, 1)[:, None]
        measured = {
            "rewards/chosen": (found.rewards[:, 0], chosen_weight),
            "rewards/rejected": (jnp.take_along_axis(found.rewards, rejected, axis=1)[:, 0], rejected_weight),
            "rewards/margins": (ahead, own_weight),
            "rewards/accuracies": ((ahead > 0).astype(jnp.float32), weight),
            "logps/chosen": (found.logps[:, 0], chosen_weight),
            "logps/rejected": (jnp.take_along_axis(found.logps, rejected, axis=1)[:, 0], rejected_weight),
            "dpo_loss": (-jax.nn.log_sigmoid(BETA * jnp.where(alone, sign * ratios[:, 0], _ahead(ratios))), weight),
        }
        metrics = {name: outputs.over_samples(*values) for name, values in measured.items()}
        rows = nll.reshape(-1)
        return Terms(loss, metrics, jnp.pad(rows, (0, outputs.batch.row_slots.shape[0] - rows.shape[0])))

    def mean_loss(
        self, rows: Sequence[TokenRow], losses: Float[np.ndarray, " rows"], numbers: Mapping[str, float]
    ) -> float:
        """Returns the loss of an evaluation by any trial's numbers, from the losses of its rows."""
        if LOSS_TYPES[int(numbers["loss_type"])] in UNPAIRED:
            return float(self.settle(rows, losses, numbers)["loss"].mean())
        answers: list[Any] = [*rows]
        of_rows = -losses, [row.reference for row in answers], [row.answer_tokens for row in answers]
        pairs = Pairs(*(jnp.asarray(np.reshape(one, (-1, self.group)), jnp.float32) for one in of_rows))
        own = {name: jnp.full(len(pairs.logps), value, jnp.float32) for name, value in numbers.items()}
        mean = float(np.asarray(pair_losses(pairs, own).losses, np.float64).mean())
        weight = numbers["sft_weight"] + (numbers["loss_type"] == LOSS_TYPES.index("orpo"))
        return mean + weight * float(losses[:: self.group].sum()) / max(sum(of_rows[2][:: self.group]), 1)

    def settles(self, numbers: Mapping[str, float]) -> bool:
        """Whether a trial's losses read the KL divergence, which is of all rows of an evaluation."""
        return numbers.get("loss_type") == LOSS_TYPES.index("kto")

    def settle(
        self, rows: Sequence[TokenRow], losses: Float[np.ndarray, " rows"], numbers: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, " samples"]]:
        """Returns the losses of answers alone, and the KL divergence, as of TRL's ``kl``, beside each of them."""
        answers: list[Any] = [*rows]
        ratios = np.array([-loss - row.reference for row, loss in zip(answers, losses, strict=True)], np.float32)
        kl = np.full(len(rows) // self.group, max(float(ratios[1 :: self.group].mean()), 0.0), np.float32)
        signs = np.array([row.sign for row in answers[:: self.group]], np.float32)
        own = {name: jnp.full(len(kl), value, jnp.float32) for name, value in numbers.items()}
        found = answer_losses(Answers(*map(jnp.asarray, (ratios[:: self.group], signs, kl))), own)
        return {"loss": np.asarray(found, np.float64), "kl": kl}


PREFERENCE = Preference()
