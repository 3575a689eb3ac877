"""The early-exit rules: which of them are on, with what numbers, and what they decide."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from altojax.early_exit import signals
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.rule_config import (
    BlownUp,
    Diverging,
    Halving,
    Median,
    NotFinite,
    Overfitting,
    Stalled,
    TopK,
    Underperforming,
)
from altojax.early_exit.signals import Curve, Verdict
from jaxrun.config.config import StrictModel
from jaxrun.config.config_keys import Ours
from jaxrun.terminal.sizes import counted

BAD_UPDATES = "updates in a row were not finite"
"""How the detail reads where a trial is ended for these, after their number."""


class Rules(StrictModel):
    """Every early-exit rule. A preset gives the numbers; what stands beside it in a config replaces them one by one.

    Example:
        ``early_exit: {preset: default, overfitting: {gap: 0.2}, underperforming: {noise: 3}}``

    Numbers that neither a config nor the preset names are the defaults below.

    Attributes:
        preset: Where the numbers come from; ``early_exit: paper`` stands for ``early_exit: {preset: paper}``.
        smoothing: Coefficient a of the moving average of the training loss; 1 is no smoothing.
        not_finite, diverging, blown_up, overfitting, stalled: Judge one trial, after each evaluation.
        underperforming, halving, median, top_k: Compare the trials of a task; one of them at most.
    """

    preset: Literal["default", "eager", "paper", "halving", "median", "topk", "none"] = "default"
    smoothing: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5
    not_finite: NotFinite = NotFinite()
    diverging: Diverging = Diverging()
    blown_up: BlownUp = BlownUp()
    overfitting: Overfitting = Overfitting()
    stalled: Stalled = Stalled()
    underperforming: Underperforming = Underperforming()
    halving: Halving = Halving()
    median: Median = Median()
    top_k: TopK = TopK()

    foreign_names: ClassVar[dict[str, str | Ours]] = {
        "early_stopping_patience": "stalled.patience",
        "rule": "preset",
        "strategy": "preset",
        "successive_halving": "halving",
        "topk": "top_k",
        "warmup": "underperforming",
    }

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _fill_from_preset(cls, given: Any, check: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(given, str):
            given = {"preset": given}
        if isinstance(given, cls):
            return check(given)
        if not isinstance(given, dict):
            raise ValueError(f"expected a preset, such as none, or a section of keys: {', '.join(cls.model_fields)}")
        preset = given.get("preset", "default")
        filled = dict(PRESETS.get(preset, {})) if isinstance(preset, str) else {}
        for key, value in given.items():
            if key not in cls.model_fields or key in ("preset", "smoothing"):
                filled[key] = value
            elif isinstance(value, bool):
                filled[key] = {**filled.get(key, {}), "enabled": value}
            elif isinstance(value, dict):
                filled[key] = {**filled.get(key, {}), "enabled": True, **value}
            else:
                filled[key] = value
        rules = check(filled)
        # What the preset gave was not set: written down, it would win over another preset.
        rules.model_fields_set.intersection_update(given)
        for key in rules.model_fields_set - {"preset", "smoothing"}:
            named = given[key] if isinstance(given[key], dict) else ("enabled",)
            getattr(rules, key).model_fields_set.intersection_update(named)
        return rules

    @pydantic.model_validator(mode="after")
    def _one_comparison_at_most(self) -> Self:
        on = [name for name in ("underperforming", "halving", "median", "top_k") if getattr(self, name).enabled]
        if len(on) > 1:
            raise ValueError(f"{' and '.join(on)} all compare trials, expected one: set {on[0]}: false or the like")
        return self

    @property
    def ends_non_finite(self) -> bool:
        """Whether a trial whose losses are not finite is ended before its schedule is."""
        return self.not_finite.enabled

    @property
    def rungs(self) -> tuple[float, ...]:
        """Where trials should be compared with their peers, ascending: below 1 shares of the schedule, else steps."""
        if self.underperforming.enabled:
            return self.underperforming.at
        if self.halving.enabled:
            return tuple(self.halving.first * self.halving.eta**k for k in range(self.halving.rungs))
        if self.median.enabled:
            return self.median.at
        return (self.top_k.steps,) if self.top_k.enabled else ()

    @property
    def waits(self) -> bool:
        """Whether a rung waits for a trial's second evaluation; else one is added before it."""
        return self.underperforming.waits if self.underperforming.enabled else True

    def after_evaluation(self, curve: Curve) -> Verdict | None:
        """Judges one trial by its own curve up to the evaluation just made; None lets it go on."""
        if not curve.val_loss.size:
            return None
        average = signals.smoothed(curve.train_loss, self.smoothing)
        for rule, raised in self._alarms(average, curve.train_loss, curve.val_loss):
            if raised[-1]:
                return self._verdict(rule, average, curve)
        return None

    def first_alarm(self, train_loss: np.ndarray, val_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Judges whole curves at once, as `after_evaluation` would have judged them evaluation by evaluation.

        Args:
            train_loss: float64 [trials, n].
            val_loss: float64 [trials, n].

        Returns:
            The index of the evaluation that ends each trial, int64 [trials], n where none does; and the reason, str
            [trials], empty where none does.
        """
        trials, n = val_loss.shape
        first, reason = np.full(trials, n), np.full(trials, "", dtype=object)
        for rule, raised in self._alarms(signals.smoothed(train_loss, self.smoothing), train_loss, val_loss):
            at = np.where(raised.any(axis=1), raised.argmax(axis=1), n)
            earlier = at < first
            first[earlier], reason[earlier] = at[earlier], _REASONS[rule]
        return first, reason

    def at_rung(self, index: int, curves: Mapping[str, Curve]) -> dict[str, Verdict]:
        """Compares a task's living trials and returns those to end, with the reason.

        A trial whose last validation loss is not finite is ended, however good it was before; of equal losses the one
        of the trial whose name sorts first ranks first. Without a rule that compares trials nobody is ended.

        Args:
            index: Of the rung, from 0.
            curves: Each living trial's evaluations up to the rung, by name.
        """
        if not self.rungs:
            return {}
        bad = {name for name, curve in curves.items() if not np.isfinite(signals.last_loss(curve))}
        verdicts = {name: Verdict("not finite", "validation loss was not finite at the rung") for name in sorted(bad)}
        fit = {name: curve for name, curve in curves.items() if name not in bad}
        if not fit:
            return verdicts
        if self.underperforming.enabled:
            return verdicts | _keep_share(self.underperforming, index, fit, len(curves))
        if self.median.enabled:
            return verdicts | _keep_below_median(fit)
        if self.halving.enabled or self.top_k.enabled:
            last = {name: signals.last_loss(curve) for name, curve in fit.items()}
            count = _ceil(len(curves) / self.halving.eta) if self.halving.enabled else self.top_k.keep
            return verdicts | _end_all_but(set(signals.ranking(last)[:count]), last, "last")
        return {}

    def _alarms(
        self, average: np.ndarray, train_loss: np.ndarray, val_loss: np.ndarray
    ) -> list[tuple[str, np.ndarray]]:
        """The rules that are on, in the order in which they are asked, and at which evaluations each is raised."""
        alarms = []
        if self.not_finite.enabled:
            alarms.append(("not_finite", signals.not_finite(train_loss, val_loss, self.not_finite.patience)))
        if self.diverging.enabled:
            window, least, patience = self.diverging.window, self.diverging.slope, self.diverging.patience
            raised = signals.rising(average, val_loss, window=window, least_slope=least, patience=patience)
            alarms.append(("diverging", raised))
        if self.blown_up.enabled:
            raised = signals.blown_up(average, factor=self.blown_up.factor, patience=self.blown_up.patience)
            alarms.append(("blown_up", raised))
        if self.overfitting.enabled:
            gap, patience = self.overfitting.gap, self.overfitting.patience
            alarms.append(("overfitting", signals.overfitting(average, val_loss, gap=gap, patience=patience)))
        if self.stalled.enabled:
            alarms.append(("stalled", signals.stalled(val_loss, self.stalled.patience)))
        return alarms

    def _verdict(self, rule: str, average: np.ndarray, curve: Curve) -> Verdict:
        train, val = average[-1], curve.val_loss[-1]
        details = {
            "not_finite": f"losses were not finite at {counted(self.not_finite.patience, 'evaluation')} in a row",
            "diverging": (
                f"training and validation loss both rose by {self.diverging.slope:g} or more per evaluation, "
                f"{counted(self.diverging.patience, 'evaluation')} in a row, to {train:.4g} and {val:.4g}"
            ),
            "blown_up": (
                f"smoothed training loss {train:.4g} was above {self.blown_up.factor:g} times its best and above its "
                f"first value at {counted(self.blown_up.patience, 'evaluation')} in a row"
            ),
            "overfitting": (
                f"validation loss {val:.4g} was more than {self.overfitting.gap:.0%} above the smoothed training loss "
                f"{train:.4g} at {counted(self.overfitting.patience, 'evaluation')} in a row"
            ),
            "stalled": (
                f"no new best validation loss in {counted(self.stalled.patience, 'evaluation')}; the best was "
                f"{np.min(curve.val_loss, where=np.isfinite(curve.val_loss), initial=np.inf):.4g}"
            ),
        }
        return Verdict(_REASONS[rule], details[rule])


_REASONS = {
    "not_finite": "not finite",
    "diverging": "diverging",
    "blown_up": "diverging",
    "overfitting": "overfitting",
    "stalled": "stalled",
}


def _keep_share(rule: Underperforming, index: int, fit: Mapping[str, Curve], living: int) -> dict[str, Verdict]:
    measure = signals.best_loss if rule.rank_by == "best" else signals.last_loss
    losses = {name: measure(curve) for name, curve in fit.items()}
    ranked = signals.ranking(losses)
    count = max(rule.at_least, _ceil(rule.keep[index] * living))
    kept = set(ranked[:count])
    if rule.noise:
        noise = np.median([signals.scatter(fit[name], span=rule.span) for name in sorted(kept)])
        kept |= {name for name in ranked[: 2 * count] if losses[name] <= losses[ranked[0]] + rule.noise * noise}
    if rule.falling:
        heading = {
            name: signals.projected_loss(curve, span=rule.span, horizon=rule.horizon) for name, curve in fit.items()
        }
        kept |= set(signals.ranking(heading)[: _ceil(rule.falling * living)])
    return _end_all_but(kept, losses, rule.rank_by)


def _keep_below_median(fit: Mapping[str, Curve]) -> dict[str, Verdict]:
    middle = float(np.median([signals.mean_loss(curve) for curve in fit.values()]))
    best = {name: signals.best_loss(curve) for name, curve in fit.items()}
    return {
        name: Verdict(
            "underperforming", f"best validation loss {loss:.4g} was above its peers' median mean loss {middle:.4g}"
        )
        for name, loss in best.items()
        if loss > middle
    }


def _end_all_but(kept: set[str], losses: Mapping[str, float], measure: str) -> dict[str, Verdict]:
    lowest = min(losses.values())
    return {
        name: Verdict(
            "underperforming",
            f"{measure} validation loss {losses[name]:.4g} ranked {place} of {len(losses)}; "
            f"{len(kept)} went on, the best at {lowest:.4g}",
        )
        for place, name in enumerate(signals.ranking(losses), start=1)
        if name not in kept
    }


def _ceil(count: float) -> int:
    """Rounds up, forgiving the error of a product such as 0.07 · 100."""
    return max(1, math.ceil(count - 1e-9))
