"""Was tuning worth it? What fixed conventional settings got on a run's own trials, beside its winner and the noise.

A setting is a learning rate and a rank. What it got is read off the trial nearest to it; of several as near, the one
whose optimizer steps take a number of samples nearest to `CONVENTIONAL_SAMPLES`, and of these the first, whatever their
losses. Losses are compared at like shares of schedules only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from altojax.report.run_record import RunRecord, TrialRecord
from altojax.report.trial_labels import labels
from jaxrun.terminal.sizes import counted

CONVENTIONAL_RATE, CONVENTIONAL_RANK, CONVENTIONAL_SAMPLES = 2e-4, 16, 8
"""Of Unsloth's notebooks for supervised fine-tuning: 2 rows, gradients gathered over 4."""
LARGE_RATE = 3e-4
"""Beside the largest rank of the run."""
FAR = 4.0
"""Factor of a learning rate or a rank beyond which a trial says nothing of a setting."""
ELSEWHERE = {"GSM8K": 0.0061, "E2E-NLG": 0.0070, "BANKING77": 0.2167}
"""Change of the best validation loss from seed to seed, as a share of it: 95 % of configurations changed by less, of
the 20 best of 60 on each data set (docs/measured/seeds.md)."""
_NEEDED = {"learning_rate", "lora_rank", "batch_size", "gradient_accumulation_steps"}


@dataclass(frozen=True)
class Noise:
    """The difference of two runs of one configuration that differ in their seed alone.

    Attributes:
        typical: Root mean square difference of two of them, in nats per token.
        bound: What 95 % of such differences are below (Student's t), in nats per token.
        runs: Runs that it is taken from.
        configurations: Their configurations.
    """

    typical: float
    bound: float
    runs: int
    configurations: int


@dataclass(frozen=True)
class Conventional:
    """A conventional setting as against the winner. Losses are the lowest up to a share of each trial's own schedule.

    Attributes:
        learning_rate: Of the setting.
        rank: Of the setting.
        trial: The trial nearest to it.
        label: What sets that apart from the other trials, in few characters.
        exact: Whether it has that learning rate and that rank.
        far: Whether it is too far away to say anything.
        is_winner: Whether it is the winner.
        share: Of schedules up to which both are compared; None compares what both came to.
        ended: Why the trial was ended there; nothing where it was not.
        loss: Its loss; None where none was finite.
        winner_loss: The winner's; None where it had not been evaluated by then.
        noise: Of runs up to the same share; None where no configuration was run twice that far.
    """

    learning_rate: float
    rank: int
    trial: str
    label: str
    exact: bool
    far: bool
    is_winner: bool
    share: float | None
    ended: str
    loss: float | None
    winner_loss: float | None
    noise: Noise | None

    @property
    def setting(self) -> str:
        """The setting in words."""
        return f"learning rate {_rate(self.learning_rate)}, rank {self.rank}"

    @property
    def measured_on(self) -> str:
        """The trial in words."""
        label = f", {self.label}" if self.label else ""
        return f"{'its own' if self.exact else 'the nearest'} trial, {self.trial}{label}"

    @property
    def gain(self) -> float | None:
        """The share by which the winner's loss is the lower one; None where they cannot be compared."""
        if self.far or self.loss is None or self.winner_loss is None or self.loss <= 0:
            return None
        return (self.loss - self.winner_loss) / self.loss

    def verdict(self) -> str:
        """Says whether tuning gained something over the setting, or why that is not known."""
        if self.far:
            return f"not known: no trial is within a factor of {FAR:g} of it"
        if self.is_winner:
            return "this trial is the best, so tuning gained nothing over it"
        if self.loss is None:
            return f"no finite loss ({self.ended})" if self.ended else "no finite loss yet"
        if self.winner_loss is None or self.gain is None:
            return "not known: the winner had not been evaluated by then"
        better = "the winner was behind then" if self.gain < 0 else "the winner was ahead by then"
        if self.share is None:
            better = "worth it"
        if self.noise is not None:
            return "within noise" if abs(self.loss - self.winner_loss) <= self.noise.bound else better
        if abs(self.gain) <= min(ELSEWHERE.values()):
            return "within noise, by runs elsewhere"
        if abs(self.gain) <= max(ELSEWHERE.values()):
            return "not known: noise was not measured"
        return f"{better}, by runs elsewhere"

    def sentence(self) -> str:
        """Says what the setting got and what came of the comparison, in one line."""
        where = f"{self.setting} ({self.measured_on})"
        if self.gain is None or self.is_winner:
            return f"{where}: {self.verdict()}"
        losses = f"{self.loss:.4f}, the winner {self.winner_loss:.4f} ({-100 * self.gain:+.1f} %)"
        if self.share is not None:
            why = f"where it was ended ({self.ended})" if self.ended else "as far as both have come"
            losses = f"{losses} at {100 * self.share:.0f} % of the schedule, {why}"
        return f"{where}: {losses}: {self.verdict()}"


@dataclass(frozen=True)
class Worth:
    """What tuning a task gained.

    Attributes:
        winner: The name of the best trial.
        comparisons: With conventional settings.
    """

    winner: str
    comparisons: tuple[Conventional, ...]

    def noise_sentence(self) -> str:
        """Says how far apart two runs of one configuration come out, and how that is known."""
        for one in sorted(self.comparisons, key=lambda one: -1 if one.share is None else -one.share):
            if (known := one.noise) is not None:
                at = "the end" if one.share is None else f"{100 * one.share:.0f} % of the schedule"
                runs = f"{counted(known.runs, 'run')} of {counted(known.configurations, 'configuration')}"
                return (
                    f"Two runs of one configuration, with seeds of their own, differ by {known.typical:.4f} at {at} "
                    f"(root mean square; {runs}); up to {known.bound:.4f} a difference is within noise."
                )
        elsewhere = ", ".join(f"{100 * share:.1f} % ({name})" for name, share in ELSEWHERE.items())
        return (
            "Noise was not measured: no configuration was trained as far with several seeds. Elsewhere another "
            f"seed changed 95 % of good configurations' losses by less than {elsewhere}."
        )


def worth_of(trials: Sequence[TrialRecord], winner: TrialRecord | None) -> Worth | None:
    """Returns what tuning a task gained over conventional settings.

    Args:
        trials: Of the task; passed over where a journal does not say their learning rate and sizes.
        winner: The best of them; None before any has a finite loss.

    Returns:
        None where there is no winner, or nothing to choose from.
    """
    trials = [trial for trial in trials if trial.config.keys() >= _NEEDED]
    if winner is None or len(trials) < 2:
        return None
    largest = max(int(trial.config["lora_rank"]) for trial in trials)
    named = dict(zip([trial.trial for trial in trials], labels([trial.config for trial in trials]), strict=True))
    settings = (CONVENTIONAL_RATE, CONVENTIONAL_RANK), (LARGE_RATE, largest)
    return Worth(winner.trial, tuple(_compare(trials, winner, *setting, named) for setting in settings))


def worth_line(record: RunRecord, task: str) -> str | None:
    """Returns what came of the first setting that some trial of a task is near, as a line for a terminal."""
    found = worth_of(record.of_task(task), record.best_of(task))
    near = () if found is None else [one for one in found.comparisons if not one.far]
    return f"{task}: was tuning worth it? {near[0].sentence()}" if near else None


def noise_of(trials: Sequence[TrialRecord], share: float | None) -> Noise | None:
    """Returns how far apart runs of one configuration are; None where none was run twice.

    Args:
        trials: Of one task.
        share: Of schedules up to which losses are the lowest; None takes trials that came to their end.
    """
    alike: dict[str, list[float]] = {}
    for trial in trials:
        came = trial.status == "completed" or (share is not None and _share(trial) >= share - 1e-9)
        loss = _loss(trial, share)
        if came and loss is not None:
            key = repr(sorted((name, repr(value)) for name, value in trial.config.items() if name != "seed"))
            alike.setdefault(key, []).append(loss)
    groups = [losses for losses in alike.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in groups)
    if not freedom:
        return None
    from scipy.special import stdtrit  # SciPy takes long to import

    means = [math.fsum(losses) / len(losses) for losses in groups]
    squares = math.fsum((loss - mean) ** 2 for losses, mean in zip(groups, means, strict=True) for loss in losses)
    typical = math.sqrt(2 * squares / freedom)
    return Noise(typical, float(stdtrit(freedom, 0.975)) * typical, sum(map(len, groups)), len(groups))


def _compare(
    trials: Sequence[TrialRecord], winner: TrialRecord, rate: float, rank: int, named: dict[str, str]
) -> Conventional:
    nearest = min(trials, key=lambda trial: (_away(trial, rate, rank), _samples_away(trial)))
    ended = winner.status in ("completed", "stopped")
    share = None if nearest.status == "completed" and ended else min(_share(nearest), _share(winner))
    return Conventional(
        learning_rate=rate,
        rank=rank,
        trial=nearest.trial,
        label=named[nearest.trial],
        exact=_away(nearest, rate, rank) == 0,
        far=max(_octaves(nearest, rate, rank)) > math.log2(FAR) + 1e-9,
        is_winner=nearest is winner,
        share=share,
        ended=nearest.fate if nearest.status == "stopped" and share == _share(nearest) else "",
        loss=_loss(nearest, share),
        winner_loss=_loss(winner, share),
        noise=noise_of(trials, share),
    )


def _octaves(trial: TrialRecord, rate: float, rank: int) -> tuple[float, float]:
    """Returns how far a trial is from a setting, in rate and in rank: logarithms to base 2."""
    own = float(trial.config["learning_rate"]), int(trial.config["lora_rank"])
    return abs(math.log2(own[0] / rate)), abs(math.log2(own[1] / rank))


def _away(trial: TrialRecord, rate: float, rank: int) -> float:
    """Returns the distance of a trial from a setting; rounded, so that equally far is equal."""
    return round(math.hypot(*_octaves(trial, rate, rank)), 9)


def _samples_away(trial: TrialRecord) -> float:
    samples = int(trial.config["batch_size"]) * int(trial.config["gradient_accumulation_steps"])
    return round(abs(math.log2(samples / CONVENTIONAL_SAMPLES)), 9)


def _share(trial: TrialRecord) -> float:
    """Returns the share of its schedule after which a trial was last evaluated; 0 before that."""
    return trial.validation[-1].step / trial.total_steps if trial.validation else 0.0


def _loss(trial: TrialRecord, share: float | None) -> float | None:
    """Returns the lowest loss up to a share of the schedule, of adapters that may be the trial's result.

    Of preference tuning it is that of one beta, since trials' own cannot be compared.
    """
    until = math.inf if share is None else share * trial.total_steps + 1e-6
    measured = [point for point in trial.results if point.step <= until and point.loss is not None]
    return min((trial.score_of(point).loss for point in measured), default=None)


def _rate(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
