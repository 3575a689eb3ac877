"""Accuracy: how often a prompt's own label is the likeliest of all labels, and how many prompts that is asked of."""

import math
from collections.abc import Callable, Sequence

from altojax.config.tune_config import TuneConfig
from altojax.device.batch import TokenRow
from altojax.device.executor import Executor
from altojax.early_exit.metric import binomial_error
from altojax.estimates.metric_price import questions_paid_for
from altojax.run.run_times import RunTimes
from altojax.run.trial import Trial
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example
from jaxlm.data.labels import Questions, ask, labels_of
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked

LEAST_QUESTIONS = 16
"""Questions, where there are so many rows, below which accuracy says too little to be measured."""


def choose_questions(
    config: TuneConfig,
    task: str,
    trials: Sequence[Trial],
    train: Sequence[Example],
    validation: Sequence[Example],
    encoder: Encoder,
    longest: int,
) -> Questions:
    """Returns what the trials of a task are asked, as much as `metric_budget` pays for.

    Args:
        config: The run.
        task: The task's name.
        trials: Its trials.
        train: Its training rows, whose completions are the labels.
        validation: Its validation rows.
        encoder: Of its rows, with only completions as targets.
        longest: Tokens that a row may have.

    Raises:
        UserError: The rows have no labels, or the budget pays for too few questions.
    """
    labels = labels_of(train)
    samples = [one.stream.total_samples for one in trials]
    shares = [[step / one.stream.total_steps for step in one.rungs] for one in trials]
    paid = questions_paid_for(samples, shares, config.early_exit.keeps, len(labels))
    count, least = int(config.metric_budget * paid), min(LEAST_QUESTIONS, len(validation))
    if count < least:
        raise UserError(
            f"task '{task}': metric_budget {config.metric_budget:g} pays for asking {count} of {len(validation):,} "
            f"validation rows with {len(labels)} labels, expected {math.ceil(1000 * least / paid) / 1000:g} or more "
            f"(up to 1), for {least} rows; or select_by: loss"
        )
    return ask(validation, labels, encoder, longest, count)


def accuracies(
    executor: Executor,
    due: Sequence[tuple[int, Questions]],
    rows_at_once: Callable[[Sequence[tuple[int, Sequence[TokenRow]]]], int],
    clock: RunTimes,
    *,
    again: float = 0,
    asked: StopAsked | None = None,
) -> dict[int, tuple[float, float]]:
    """Asks the trials in slots, all of them in the same batches.

    Args:
        executor: Has the slots.
        due: Slots to ask, and what.
        rows_at_once: Returns the rows of a batch on one device.
        clock: Counts the time, without what is compiled.
        again: Times to come that they are asked.
        asked: Asks it to stop.

    Returns:
        Accuracy and its standard error by slot.

    Raises:
        Stopped: It was asked to.
    """
    waited_s = executor.programs.stats().waited_s
    with clock.measure("metric_s"):
        rows = [(slot, questions.candidates) for slot, questions in due]
        losses = executor.row_losses(rows, rows_at_once(rows), again=again, asked=asked)
    clock.add("metric_s", waited_s - executor.programs.stats().waited_s)
    hits = {slot: questions.hits(losses[slot]) for slot, questions in due}
    return {slot: (hits[slot] / len(one), binomial_error(hits[slot], len(one))) for slot, one in due}
