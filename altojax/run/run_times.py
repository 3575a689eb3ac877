"""Wall-clock times of a run, and an estimate for one trial at a time."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jaxrun.process.wall_times import WallTimes

_UNLIKE = 1.25
"""Ratio of samples a step between the fullest and the emptiest window from which on a line through them means much."""


@dataclass(frozen=True)
class Pace:
    """The pace of steps: seconds = step_s + sample_s · samples of the step.

    Attributes:
        steps: That were measured.
        samples: Of them.
        seconds: They took.
        step_s: Seconds of a step whatever rides along; None where steps were too much alike to tell the parts apart.
        sample_s: Seconds more for each sample; likewise.
    """

    steps: int
    samples: int
    seconds: float
    step_s: float | None
    sample_s: float | None


@dataclass
class RunTimes(WallTimes):
    """Wall-clock times of a tuning run; its evaluations are counted without what they compile.

    Attributes:
        setup_s: Seconds from the starts of its processes to their clocks: data, base, and steps compiled to plan.
        first_step_s: Seconds, of `whole_s`, until the run's first training step began; None before it.
        host_s: Seconds of training in which the host makes batches and launches steps; the device computes meanwhile.
        exchange_s: Seconds in which adapters and moments go to slots and come back.
        metric_s: Seconds in which trials and base are asked for the metric.
        padded_tokens: Tokens that the devices computed for the real ones.
        lockstep_tokens: What they would be if in every step all devices had as many as the one that has most.
        alone_steps: Steps that the same training would have been, one trial at a time.
        alone_tokens: Tokens, padding included, that a device would have computed in these.
        windows: (steps, tokens that each device computed, seconds) between two fetches of losses.
        here: (steps, samples, seconds) of those since this process began; another one may have other devices.
    """

    setup_s: float = 0.0
    first_step_s: float | None = None
    host_s: float = 0.0
    exchange_s: float = 0.0
    metric_s: float = 0.0
    padded_tokens: int = 0
    lockstep_tokens: int = 0
    alone_steps: int = 0
    alone_tokens: int = 0
    windows: list[tuple[int, int, float]] = field(default_factory=list)
    here: list[tuple[int, int, float]] = field(default_factory=list)
    _since: float | None = None
    _steps: int = 0
    _computed: int = 0
    _samples: int = 0

    @property
    def whole_s(self) -> float:
        """Seconds of the run with its starts."""
        return self.elapsed_s + self.setup_s

    @property
    def working_s(self) -> float:
        """Seconds of training and measuring, which compilations have no part in; 0 before losses were fetched once.

        The first exchanges and the first checkpoint of a process compile, so they say nothing of its pace.
        """
        if not self.training_s:
            return 0.0
        under_way = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.training_s + under_way + self.evaluation_s + self.metric_s

    def start_training(self) -> None:
        """Marks the first step of a window."""
        if self.first_step_s is None:
            self.first_step_s = self.whole_s
        if self._since is None:
            self._since = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Takes `seconds` just spent on something else, such as a compilation, out of the window."""
        if self._since is not None:
            self._since += seconds

    def count_step(self, samples: int, computed: int, text: Sequence[int], alone: Sequence[int]) -> None:
        """Counts one step.

        Args:
            samples: Its rows of text.
            computed: Tokens that each device computed, padding included.
            text: Tokens of text that each group of devices had.
            alone: Tokens that each of its trials would have computed in a step for itself, padding included.
        """
        self._steps += 1
        self._samples += samples
        self._computed += computed
        self.tokens += sum(text)
        self.padded_tokens += computed * len(text)
        self.lockstep_tokens += max(text) * len(text)
        self.alone_steps += len(alone)
        self.alone_tokens += sum(alone)

    def stop_training(self) -> float:
        """Ends a window, whose losses have arrived, and returns its seconds."""
        seconds = 0.0 if self._since is None else time.perf_counter() - self._since
        self.training_s += seconds
        self.windows.append((self._steps, self._computed, seconds))
        self.here.append((self._steps, self._samples, seconds))
        self._since, self._steps, self._computed, self._samples = None, 0, 0, 0
        return seconds

    def padding(self) -> float:
        """The share of the tokens computed in training that is padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def imbalance(self) -> float:
        """The share of the devices' time that goes by waiting for the busiest, by tokens; 0 for one device."""
        return 1 - self.tokens / self.lockstep_tokens if self.lockstep_tokens else 0.0

    def alone_s(self) -> float | None:
        """Estimates the seconds of the same steps, evaluations, starts and compilations, one trial at a time.

        Steps of one trial are priced by the seconds of a step and of a token in this run's own windows. None where
        these are too few, or too much alike to tell the two apart.
        """
        prices = self._prices()
        if prices is None:
            return None
        alone = prices[0] * self.alone_steps + prices[1] * self.alone_tokens
        return self.whole_s - self.training_s - self.exchange_s + alone

    def fixed_s(self) -> float:
        """Estimates the seconds that this run's steps took whatever their tokens; 0 where that cannot be estimated."""
        prices = self._prices()
        return 0.0 if prices is None else prices[0] * sum(steps for steps, *_ in self.windows)

    def _prices(self) -> tuple[float, float] | None:
        """Seconds of a step and of a token of a device, by least squares over windows, both at least 0."""
        steps, tokens, seconds = np.array(self.windows, np.float64).reshape(-1, 3).T
        if len(steps) < 2 or (tokens / steps).max() < _UNLIKE * (tokens / steps).min():
            return None
        per_step, per_token = np.linalg.lstsq(np.stack([steps, tokens], axis=1), seconds, rcond=None)[0]
        if per_token < 0:
            return float(seconds.sum() / steps.sum()), 0.0
        if per_step < 0:
            return 0.0, float(seconds.sum() / tokens.sum())
        return float(per_step), float(per_token)

    def pace(self) -> Pace | None:
        """Measures steps since this process began, from a least-squares fit over windows; None before the second one.

        The first window is left out: buffers and caches are made in it.
        """
        data = np.array(self.here[1:])
        if not len(data):
            return None
        steps, samples, seconds = data.sum(0)
        share = data[:, 1] / data[:, 0]
        parts: tuple[float | None, float | None] = None, None
        if share.max() >= _UNLIKE * share.min():
            fit = np.linalg.lstsq(data[:, :2], data[:, 2], rcond=None)[0]
            parts = (float(fit[0]), float(fit[1])) if (fit >= 0).all() else parts
        return Pace(int(steps), int(samples), float(seconds), *parts)

    def summary(self) -> dict[str, Any]:
        """Plain data for reports: where the time went, and how fast it was."""
        pace = self.pace()
        return {
            "whole_s": self.whole_s,
            "first_step_s": self.first_step_s,
            "training_s": self.training_s,
            "fixed_s": self.fixed_s(),
            "host_s": self.host_s,
            "evaluation_s": self.evaluation_s,
            "exchange_s": self.exchange_s,
            "metric_s": self.metric_s,
            "checkpoint_s": self.checkpoint_s,
            "tokens": self.tokens,
            "padding": self.padding(),
            "tokens_per_s": self.tokens_per_s,
            "imbalance": self.imbalance(),
            "alone_s": self.alone_s(),
            "pace": None if pace is None else asdict(pace),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        kept = super().to_dict() | {"windows": self.windows[-2000:]}
        del kept["here"]
        return kept
