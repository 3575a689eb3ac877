"""The plan of rounds: pure functions of the config and the round's number."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32, Int64, PRNGKeyArray

from jaxlm.data.batching.order import order
from jaxrun.process.errors import UserError
from twistjax.config import SELF, Subnetworks, Training, TwistConfig
from twistjax.training.units import check_coverage

MOST_ROUND_ROWS, MOST_STEPS = 2**24, 10_000_000
"""Rows of a round, and local steps of a worker's place over all rounds."""
_DEAL, _KAPPA, _TICKET = 1, 2, 3


@dataclass(frozen=True)
class RoundsPlan:
    """The rounds of a run.

    Attributes:
        config: The run.
        rows: Training rows there are.
        rounds: How many rounds there will be.
    """

    config: TwistConfig
    rows: int
    rounds: int

    @property
    def samples_per_round(self) -> int:
        """Rows that all workers together see in a round."""
        training = self.config.training
        return self.config.subnetworks.workers * training.local_steps * training.batch_size

    @property
    def steps(self) -> int:
        """Local steps of a worker's place over all rounds."""
        return self.rounds * self.config.training.local_steps

    def kappas(self, number: int) -> list[float]:
        """Returns the kappa of each wave of a round: drawn, or by importance the largest, the smallest, and between."""
        subnetworks, ladder = self.config.subnetworks, self.config.subnetworks.ladder
        waves = subnetworks.workers // at_once(subnetworks)
        words = np.random.Philox(key=np.array([self.config.seed, _KAPPA << 32 | number], np.uint64)).random_raw(waves)
        if subnetworks.order == "importance" and len(ladder) > 1:
            between = ladder[1:-1] or ladder
            return [ladder[-1], ladder[0], *(between[int(word % len(between))] for word in words[2:])]
        return [ladder[int(word % len(ladder))] for word in words]

    def key(self, number: int) -> PRNGKeyArray:
        """Returns the key of a round's assignment of units to workers."""
        return _key(self.config.seed, _DEAL, number)

    def batch(self, number: int) -> Int64[np.ndarray, "steps workers batch"]:
        """Returns the rows of a round; no row comes again before all have been seen."""
        training, workers = self.config.training, self.config.subnetworks.workers
        samples = np.arange(self.samples_per_round, dtype=np.int64) + number * self.samples_per_round
        epochs, places = samples // self.rows, samples % self.rows
        chosen = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = _epoch(self.rows, self.config.seed, int(epoch))[places[here]]
        return chosen.reshape(training.local_steps, workers, training.batch_size)

    @property
    def rows_read(self) -> Int64[np.ndarray, " read"]:
        """The rows that the run reads at all, ascending."""
        samples = self.rounds * self.samples_per_round
        if samples >= self.rows:
            return np.arange(self.rows, dtype=np.int64)
        return np.sort(_epoch(self.rows, self.config.seed, 0)[:samples])

    def rates(self, number: int) -> Float32[np.ndarray, " steps"]:
        """Returns the learning rate of every local step of a round."""
        local = self.config.training.local_steps
        return self._rates[number * local : (number + 1) * local]

    @cached_property
    def _rates(self) -> Float32[np.ndarray, " steps"]:
        return learning_rates(self.config, self.steps)


def plan_of(config: TwistConfig, rows: int) -> RoundsPlan:
    """Returns the rounds of a run over `rows` training rows.

    Raises:
        UserError: Workers that cannot hold every unit, waves that are not whole or too few, ``full`` with several
            kappas, a core of what is all by importance, no teacher or nobody to teach it, more rows in a round or more
            steps than can be listed.
    """
    subnetworks, training = config.subnetworks, config.training
    per_round = subnetworks.workers * training.local_steps * training.batch_size
    if per_round > MOST_ROUND_ROWS:
        raise UserError(
            f"training: {per_round:,} rows in a round, expected at most {MOST_ROUND_ROWS:,} "
            "(subnetworks.workers x local_steps x batch_size)"
        )
    nested = subnetworks.order == "importance"
    if nested and subnetworks.core:
        raise UserError("subnetworks.core: of order importance all is the core, expected order random, or no core")
    if not nested:
        check_coverage([min(subnetworks.ladder)] * subnetworks.workers)
    if nested and len(subnetworks.ladder) > 1 and subnetworks.workers == 1:
        raise UserError(
            "subnetworks.workers: given 1, expected at least 2, for by importance a round has both the largest and the "
            "smallest kappa"
        )
    if nested and len(subnetworks.ladder) > 1 and subnetworks.workers < 2 * at_once(subnetworks):
        raise UserError(
            f"subnetworks.workers_at_once: given {at_once(subnetworks)} of {subnetworks.workers} workers, expected at "
            "most half, for by importance a round has both the largest and the smallest kappa"
        )
    if subnetworks.workers % at_once(subnetworks):
        raise UserError(
            f"subnetworks.workers_at_once: given {subnetworks.workers_at_once}, "
            f"expected a divisor of the {subnetworks.workers} workers"
        )
    if subnetworks.correction == "full" and len(subnetworks.ladder) > 1:
        raise UserError("subnetworks.correction: full with several kappas, expected one kappa, or inverse or none")
    if training.teacher is None and training.teacher_share != 1:
        raise UserError("training.teacher_share: there is no teacher, expected a training.teacher")
    if training.teacher == SELF and training.teacher_share == 1 and 1.0 not in subnetworks.ladder:
        raise UserError(
            "training.teacher: self, of which all workers learn and none of the text, expected 1 among "
            "subnetworks.kappa, or training.teacher_share below 1"
        )
    if training.teacher == SELF and subnetworks.ladder == (1.0,):
        raise UserError("training.teacher: self, of which no worker of kappa 1 learns, expected a smaller kappa, too")
    plain = Training()
    if training.outer == "mean":
        for key in ("outer_momentum", "outer_learning_rate"):
            if getattr(training, key) != getattr(plain, key):
                raise UserError(f"training.{key}: a mean has none, expected training.outer nesterov")
    samples = training.train_samples or round(training.num_train_epochs * rows)
    rounds = max(1, round(samples / per_round))
    if rounds * training.local_steps > MOST_STEPS:
        raise UserError(
            f"training: {rounds * training.local_steps:,} local steps of a worker, expected at most {MOST_STEPS:,}: "
            "fewer train_samples or num_train_epochs"
        )
    return RoundsPlan(config, rows, rounds)


def at_once(subnetworks: Subnetworks) -> int:
    """Workers of a wave."""
    if subnetworks.workers_at_once is not None:
        return subnetworks.workers_at_once
    return subnetworks.workers if len(subnetworks.ladder) == 1 else 1


def ticket_key(seed: int, ticket: int) -> PRNGKeyArray:
    """Returns what the random ticket of a number is drawn from, at any kappa."""
    return _key(seed, _TICKET, ticket)


def learning_rates(config: TwistConfig, steps: int) -> Float32[np.ndarray, " steps"]:
    """Returns the learning rate of every step of a run of so many."""
    training = config.training
    peak, warm = training.learning_rate, round(training.warmup_ratio * steps)
    left = max(1, steps - warm)
    courses = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * training.min_lr_ratio, left),
        "cosine": optax.cosine_decay_schedule(peak, left, training.min_lr_ratio),
    }
    course = courses[training.lr_scheduler_type]
    if warm:
        course = optax.join_schedules([optax.linear_schedule(peak / (warm + 1), peak, warm), course], [warm])
    rates = course(jnp.arange(steps, dtype=jnp.float32))
    return np.broadcast_to(np.asarray(rates, np.float32), (steps,))


def every(given: float, rounds: int) -> int:
    """Returns rounds between two of something: a share of all rounds below 1, else a number of rounds."""
    return max(1, round(given * rounds if given < 1 else given))


@lru_cache(maxsize=2)
def _epoch(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    return order(rows, seed, epoch)


def _key(seed: int, use: int, number: int) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), number)
