"""The metric that a run selects by, measured of trials in slots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from altojax.config.tune_config import TuneConfig
from altojax.device.batch import TokenRow
from altojax.device.executor import Executor
from altojax.early_exit.metric import mean_and_error
from altojax.run.loop.decoding import Decoding
from altojax.run.loop.scoring import Grade, TrialAnswer
from altojax.run.run_times import RunTimes
from jaxlm.data.answers import OpenQuestions, answer_of
from jaxlm.data.labels import Questions
from jaxlm.devices.hosts import ALONE, Hosts
from jaxrun.process.interrupt import StopAsked


@dataclass
class TaskMetric:
    """Asks the trials in slots, all of them in the same batches.

    Attributes:
        config: The run, which selects by a metric.
        executor: Has the slots.
        questions: What the trials of each task are asked.
        tokenizers: Write the answers of each task as text.
        clock: Counts the time, without what is compiled.
        room_bytes: Of a device, beside what stays from step to step.
        grade: Scores answers, where code of the user's does; the leader's alone.
        hosts: The processes of the run; all of them measure at once.
    """

    config: TuneConfig
    executor: Executor
    questions: Mapping[str, Questions | OpenQuestions]
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    clock: RunTimes
    room_bytes: int
    grade: Grade | None = None
    hosts: Hosts = ALONE

    def measure(
        self,
        due: Sequence[tuple[int, str]],
        rows_at_once: Callable[[Sequence[tuple[int, Sequence[TokenRow]]]], int],
        *,
        average: int | None = None,
        again: float = 0,
        asked: StopAsked | None = None,
    ) -> dict[int, tuple[float, float]]:
        """Measures trials.

        Args:
            due: Slots to ask, and the task of each.
            rows_at_once: Returns the rows of a batch of labels on one device.
            average: Index of the window whose running average is asked; None is the adapters themselves.
            again: Times to come that they are asked.
            asked: Asks it to stop.

        Returns:
            The metric and its standard error by slot.

        Raises:
            Stopped: It was asked to.
        """
        waited_s = self.executor.programs.stats().waited_s
        with self.clock.measure("metric_s"):
            if self.config.select_by == "accuracy":
                found = self._labels(due, rows_at_once, average, again, asked)
            else:
                found = self._answers(due, average, asked)
        self.clock.add("metric_s", waited_s - self.executor.programs.stats().waited_s)
        return {slot: mean_and_error(scores) for slot, scores in found.items()}

    def _labels(
        self,
        due: Sequence[tuple[int, str]],
        rows_at_once: Callable[[Sequence[tuple[int, Sequence[TokenRow]]]], int],
        average: int | None,
        again: float,
        asked: StopAsked | None,
    ) -> dict[int, list[float]]:
        """Returns by slot which prompts have their own label as the likeliest."""
        questions = {slot: one for slot, task in due if isinstance(one := self.questions[task], Questions)}
        rows = [(slot, one.candidates) for slot, one in questions.items()]
        losses = self.executor.row_losses(rows, rows_at_once(rows), again=again, average=average, asked=asked)
        return {slot: one.hits(losses[slot]).astype(float).tolist() for slot, one in questions.items()}

    def _answers(
        self, due: Sequence[tuple[int, str]], average: int | None, asked: StopAsked | None
    ) -> dict[int, list[float]]:
        """Returns by slot the scores of the answers that are generated."""
        questions = {slot: one for slot, task in due if isinstance(one := self.questions[task], OpenQuestions)}
        made = self._decoding.answers(list(questions.items()), average=average, asked=asked)
        answers = {
            slot: [
                TrialAnswer(prompt, self._text(task, tokens), reference)
                for prompt, tokens, reference in zip(
                    questions[slot].prompts, made[slot], questions[slot].references, strict=True
                )
            ]
            for slot, task in due
        }
        if self.config.select_by == "exact_match":
            return {slot: [float(self._matches(one)) for one in those] for slot, those in answers.items()}
        every = [one for those in answers.values() for one in those]
        with self.hosts.together():
            scores = None if self.grade is None else self.grade(every, asked)
        flat = iter(self.hosts.decide(scores))
        return {slot: list(islice(flat, len(those))) for slot, those in answers.items()}

    def _matches(self, one: TrialAnswer) -> bool:
        pattern = self.config.metric.answer_pattern
        return answer_of(one.answer, pattern) == answer_of(one.reference, pattern)

    def _text(self, task: str, tokens: np.ndarray) -> str:
        return str(self.tokenizers[task].decode(tokens, skip_special_tokens=True))

    @cached_property
    def _decoding(self) -> Decoding:
        every = [one for one in self.questions.values() if isinstance(one, OpenQuestions)]
        return Decoding(self.executor, every, self.room_bytes)
