"""What trials are asked where a metric decides: how many validation rows, and how."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from altojax.config.tune_config import TuneConfig
from altojax.estimates.metric_price import answer_passes, questions_paid_for
from altojax.run.trial import Trial
from jaxlm.data.answers import OpenQuestions, check_references, open_questions
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example
from jaxlm.data.labels import Questions, ask, labels_of
from jaxlm.families.config import ModelConfig
from jaxlm.files.tokenizer import end_tokens
from jaxrun.process.errors import UserError

LEAST_QUESTIONS = 16
"""Questions, where there are so many rows, below which a metric says too little to be measured."""


def choose_questions(
    config: TuneConfig,
    task: str,
    trials: Sequence[Trial],
    train: Sequence[Example],
    validation: Sequence[Example],
    encoder: Encoder,
    longest: int,
    *,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    ends: Iterable[int],
) -> Questions | OpenQuestions:
    """Returns what the trials of a task are asked, as much as `metric_budget` pays for.

    Args:
        config: The run, which selects by a metric.
        task: The task's name.
        trials: Its trials.
        train: Its training rows, whose completions may be the labels.
        validation: Its validation rows.
        encoder: Of its rows, with only completions as targets.
        longest: Tokens that a row may have.
        model: The base.
        tokenizer: The base's.
        ends: Tokens that end what training rows teach to write.

    Raises:
        UserError: The rows have no labels or no answers, or the budget pays for too few questions.
    """
    if config.select_by == "accuracy":
        labels = labels_of(train)
        passes, what = float(len(labels)), f"with {len(labels)} labels"
        count = _count(config, task, trials, len(validation), passes, what)
        return ask(validation, labels, encoder, longest, count)
    questions = open_questions(
        validation,
        encoder,
        ends=end_tokens([*ends, *encoder.turn_ends], model.eos_ids, tokenizer),
        longest=longest,
        positions=model.max_position,
        max_new_tokens=config.metric.max_new_tokens,
        lengths=partial(_lengths, tokenizer),
        purpose=f"select_by: {config.select_by}",
    )
    new = questions.max_new_tokens
    rows = trials[0].stream.rows
    row = sum(len(one.tokens) for one in rows) / len(rows)
    passes = answer_passes(sum(map(len, questions.tokens)) / len(questions), new, row)
    what = f"for answers of up to {new} tokens"
    questions = questions.first(_count(config, task, trials, len(questions), passes, what))
    if config.select_by == "exact_match":
        check_references(questions, config.metric.answer_pattern)
    return questions


def _count(config: TuneConfig, task: str, trials: Sequence[Trial], rows: int, passes: float, what: str) -> int:
    """Returns how many questions `metric_budget` pays for.

    Raises:
        UserError: Too few.
    """
    samples = [one.stream.total_samples for one in trials]
    shares = [[step / one.stream.total_steps for step in one.rungs] for one in trials]
    adapters = len(config.adapters_asked)
    paid = questions_paid_for(samples, shares, config.early_exit.keeps, passes, adapters)
    count, least = int(config.metric_budget * paid), min(LEAST_QUESTIONS, rows)
    if count >= least:
        return count
    fewest = math.ceil(1000 * least / paid) / 1000
    budget = f"{fewest:g} or more (up to 1)" if fewest <= 1 else "shorter answers or fewer rungs"
    raise UserError(
        f"task '{task}': metric_budget {config.metric_budget:g} pays for asking {count} of {rows:,} validation rows "
        f"{what}, expected {budget}, for {least} rows; or select_by: loss"
    )


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
