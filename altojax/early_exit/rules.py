"""The early-exit rules of a task: which of them are on, with what numbers, and what they decide together."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
import pydantic
from pydantic.fields import FieldInfo

from altojax.early_exit import signals
from altojax.early_exit.alarms.blown_up import BlownUp
from altojax.early_exit.alarms.diverging import Diverging
from altojax.early_exit.alarms.not_finite import NotFinite
from altojax.early_exit.alarms.overfitting import Overfitting
from altojax.early_exit.alarms.stalled import Stalled
from altojax.early_exit.comparisons.halving import Halving
from altojax.early_exit.comparisons.median import Median
from altojax.early_exit.comparisons.top_k import TopK
from altojax.early_exit.comparisons.underperforming import Underperforming
from altojax.early_exit.curve import AVERAGE, Curve, stacked
from altojax.early_exit.presets import FEW_RUNGS, PRESETS, WITHOUT_AVERAGES
from altojax.early_exit.rule import Alarm, Comparison, Rule, SelectBy, Verdict
from jaxrun.config.config import StrictModel
from jaxrun.config.config_keys import Ours

REGISTERED: dict[str, type[Rule]] = {}
"""Every rule by its name, in the order in which alarms are asked."""


class Rules(StrictModel):
    """All early-exit rules. A preset gives the numbers, which keys beside it in a config replace one by one.

    Example:
        ``early_exit: {preset: default, overfitting: {gap: 0.2}, underperforming: {noise: 3}}``

    Numbers that neither a config nor the preset names are the defaults below.

    Attributes:
        preset: Where the numbers come from; ``early_exit: paper`` stands for ``early_exit: {preset: paper}``.
        smoothing: Coefficient a of the moving average of the training loss; 1 is no smoothing.
    """

    preset: Literal["default", "cautious", "eager", "paper", "halving", "median", "topk", "none"] = "default"
    smoothing: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5

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
            if key not in REGISTERED:
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
        for key in rules.model_fields_set & REGISTERED.keys():
            named = given[key] if isinstance(given[key], dict) else ("enabled",)
            getattr(rules, key).model_fields_set.intersection_update(named)
        return rules

    @pydantic.model_validator(mode="after")
    def _one_comparison_at_most(self) -> Self:
        on = [rule.name for rule in self.on if isinstance(rule, Comparison)]
        if len(on) > 1:
            raise ValueError(f"{' and '.join(on)} all compare trials, expected one: set {on[0]}: false or the like")
        return self

    @property
    def on(self) -> list[Rule]:
        """The rules that are on, in the order in which they are asked; none that was registered later."""
        known = (getattr(self, name, None) for name in REGISTERED)
        return [rule for rule in known if rule is not None and rule.enabled]

    @property
    def alarms(self) -> list[Alarm]:
        """Those that judge one trial, after each evaluation."""
        return [rule for rule in self.on if isinstance(rule, Alarm)]

    @property
    def comparison(self) -> Comparison | None:
        """The one that compares the trials of a task, if any does."""
        return next((rule for rule in self.on if isinstance(rule, Comparison)), None)

    @property
    def ends_broken(self) -> bool:
        """Whether a trial of which updates in a row were not finite is ended."""
        return any(rule.ends_broken for rule in self.alarms)

    @property
    def rungs(self) -> tuple[float, ...]:
        """Points at which trials are compared, ascending: below 1 shares of the schedule, else steps."""
        return self.comparison.rungs if self.comparison else ()

    @property
    def evaluations(self) -> int:
        """How many a trial has had when it is compared."""
        return self.comparison.evaluations if self.comparison else 2

    @property
    def waits_for_second(self) -> bool:
        """Whether a rung waits for a trial's second evaluation; else one is added before it."""
        return self.comparison.waits_for_second if self.comparison else True

    def lacking(self, names: set[str]) -> dict[str, str]:
        """Returns what rules that are on need of curves and is not among these names: which rule, by what it needs."""
        return {need: rule.name for rule in self.on for need in rule.needs if need not in names}

    def for_curves(self, names: set[str]) -> Self:
        """Returns the rules for curves that have these values beside the two losses.

        A preset that ranks by averages is another where there are none (`WITHOUT_AVERAGES`), with whatever keys were
        set beside it. Rules that were told to rank by averages are not changed, and so lack them.
        """
        told = self._is_told("rank_by")
        if AVERAGE in names or AVERAGE not in self.lacking(names) or told or self.preset not in WITHOUT_AVERAGES:
            return self
        set_keys = self.model_dump(exclude_unset=True)
        rules = type(self).model_validate({**set_keys, "preset": WITHOUT_AVERAGES[self.preset]})
        rules.model_fields_set.intersection_update(self.model_fields_set)
        return rules

    def selecting_by(self, choice: SelectBy) -> Self:
        """Returns the rules with a run's `select_by`, where the one that compares trials was not told its own.

        A metric that is asked for has a preset's few rungs (`FEW_RUNGS`), where none were told.

        Raises:
            ValueError: That rule compares losses alone.
        """
        rule = self.comparison
        if rule is None or choice == rule.select_by or self._is_told("select_by"):
            return self
        if choice not in get_args(type(rule).model_fields["select_by"].annotation):
            raise ValueError(
                f"{rule.name} compares losses alone, but select_by is {choice}: expected another rule, or "
                f"early_exit.{rule.name}.select_by: loss"
            )
        few = FEW_RUNGS.get(self.preset, {}) if choice != "preference" and rule.name in PRESETS[self.preset] else {}
        rungs = {} if self._is_told("at") or self._is_told("keep") else few
        choosing = rule.model_copy(update={"select_by": choice, **rungs})
        choosing.model_fields_set.difference_update({"select_by", *rungs} - rule.model_fields_set)
        rules = self.model_copy(update={rule.name: choosing})
        rules.model_fields_set.intersection_update(self.model_fields_set)
        return rules

    def _is_told(self, key: str) -> bool:
        """Whether a key of the rule that compares trials was set, and not given by the preset."""
        rule = self.comparison
        return rule is not None and rule.name in self.model_fields_set and key in rule.model_fields_set

    def after_evaluation(self, curve: Curve) -> Verdict | None:
        """Judges one trial by its own curve up to the evaluation just made; None continues it."""
        if not curve.val_loss.size:
            return None
        average = signals.smoothed(curve.train_loss, self.smoothing)
        for rule in self.alarms:
            if rule.raised(curve, average)[-1]:
                return Verdict(rule.reason, rule.detail(curve, average))
        return None

    def first_alarms(self, curves: list[Curve]) -> list[int]:
        """Judges whole curves of equal length, as `after_evaluation` would have judged them evaluation by evaluation.

        Returns:
            The index of the evaluation that ends each trial, its number of evaluations where none does.
        """
        together = stacked(curves, sorted({need for rule in self.alarms for need in rule.needs}))
        average = signals.smoothed(together.train_loss, self.smoothing)
        first = np.full(len(curves), together.val_loss.shape[1])
        for rule in self.alarms:
            raised = rule.raised(together, average)
            first = np.where(raised.any(axis=1), np.minimum(first, raised.argmax(axis=1)), first)
        return [int(index) for index in first]

    def at_rung(self, index: int, curves: Mapping[str, Curve]) -> dict[str, Verdict]:
        """Compares a task's living trials and returns those to end, with the reason.

        A trial whose last loss, raw or averaged, is not finite is ended, however good it was before; of equal losses
        the one of the trial whose name sorts first ranks first. Without a rule that compares trials nobody is ended.

        Args:
            index: Of the rung, from 0.
            curves: Each living trial's evaluations up to the rung, by name.
        """
        rule = self.comparison
        if rule is None:
            return {}
        finite = {name: rule.judged(curve) for name, curve in curves.items() if np.isfinite(signals.last_loss(curve))}
        fit = {name: curve for name, curve in finite.items() if np.isfinite(signals.last_loss(curve))}
        bad = Verdict("not finite", "validation loss was not finite at the rung")
        verdicts = dict.fromkeys(sorted(curves.keys() - fit.keys()), bad)
        return verdicts | (rule.compare(index, fit, len(curves)) if fit else {})

    def keeps(self, index: int, living: int) -> int:
        """Returns how many of so many living trials are expected to go on at a rung."""
        return self.comparison.keeps(index, living) if self.comparison else living


EarlyExit = Annotated[
    Rules, pydantic.WrapValidator(lambda given, _: Rules.model_validate(given)), pydantic.SerializeAsAny()
]
"""The rules as a section of a config, also those that are registered after the config's class was made."""


def register(*rules: type[Rule]) -> None:
    """Makes rules known by their names: as sections of ``early_exit``, and to all that asks `Rules`.

    Registering a rule again replaces it, as in a notebook.

    Raises:
        ValueError: The name is another rule's, or a key of `Rules`.
    """
    for rule in rules:
        before = REGISTERED.get(rule.name)
        if before is None and (rule.name in Rules.model_fields or hasattr(Rules, rule.name)):
            raise ValueError(f"{rule.__qualname__}: its name '{rule.name}' means something else in early_exit")
        if before is not None and (before.__module__, before.__qualname__) != (rule.__module__, rule.__qualname__):
            raise ValueError(f"{rule.__qualname__}: its name '{rule.name}' is that of {before.__qualname__} already")
    fields = {rule.name: FieldInfo(annotation=rule, default=rule()) for rule in rules}
    REGISTERED.update({rule.name: rule for rule in rules})
    Rules.model_fields.update(fields)
    Rules.model_rebuild(force=True)


# Alarms are asked in this order.
register(NotFinite, Diverging, BlownUp, Overfitting, Stalled, Underperforming, Halving, Median, TopK)
