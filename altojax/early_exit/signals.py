"""Signals for early exit: pure functions of recorded loss curves, without devices, clocks or configs.

The alarms take arrays of any leading shape and answer for every evaluation at once, each answer from that evaluation
and those before it only. So a run asks about the last evaluation of one curve, a replay about all evaluations of
thousands, and both run the same lines. A loss that is infinite counts as not a number throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Curve:
    """One trial's evaluations so far, oldest first.

    Attributes:
        fraction: Share of the trial's own schedule done at each evaluation, float64 [n], ascending.
        train_loss: Mean training loss since the evaluation before, float64 [n]; nan or inf where it was not finite.
        val_loss: Validation loss, float64 [n]; nan or inf where it was not finite.
    """

    fraction: np.ndarray
    train_loss: np.ndarray
    val_loss: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """Why a trial ends.

    Attributes:
        reason: ``not finite``, ``diverging``, ``overfitting``, ``stalled`` or ``underperforming``.
        detail: The same as a sentence with numbers.
    """

    reason: str
    detail: str


def smoothed(loss: Float[np.ndarray, "*trials n"], coefficient: float) -> Float[np.ndarray, "*trials n"]:
    """Exponential moving average m_t = a·l_t + (1 − a)·m_{t−1} with m_1 = l_1; what is not finite is skipped.

    Args:
        loss: Losses, oldest first.
        coefficient: a, in (0, 1]; 1 leaves the losses as they are.

    Returns:
        The average after each evaluation, float64; nan before the first finite loss.
    """
    loss = _finite_or_nan(loss)
    average = np.empty_like(loss)
    before = np.full(loss.shape[:-1], np.nan)
    for t in range(loss.shape[-1]):
        now = loss[..., t]
        mixed = np.where(np.isnan(before), now, coefficient * now + (1.0 - coefficient) * before)
        before = np.where(np.isnan(now), before, mixed)
        average[..., t] = before
    return average


def slope(loss: Float[np.ndarray, "*trials n"], window: int) -> Float[np.ndarray, "*trials n"]:
    """Least-squares slope over the last `window` evaluations, in loss per evaluation.

    Returns:
        The slope at each evaluation, float64; nan where there are fewer than `window` or one of them is not finite.
    """
    slopes = np.full(loss.shape, np.nan)
    if loss.shape[-1] >= window:
        x = np.arange(window) - (window - 1) / 2
        windows = np.lib.stride_tricks.sliding_window_view(_finite_or_nan(loss), window, axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):
            slopes[..., window - 1 :] = windows @ (x / (x @ x))
    return slopes


def in_a_row(alarm: Bool[np.ndarray, "*trials n"], count: int) -> Bool[np.ndarray, "*trials n"]:
    """Whether the alarm has been raised at this evaluation and at the `count` − 1 before it."""
    raised = np.zeros(alarm.shape, bool)
    if alarm.shape[-1] >= count:
        windows = np.lib.stride_tricks.sliding_window_view(alarm, count, axis=-1)
        raised[..., count - 1 :] = windows.all(axis=-1)
    return raised


def not_finite(
    train_loss: Float[np.ndarray, "*trials n"], val_loss: Float[np.ndarray, "*trials n"], patience: int
) -> Bool[np.ndarray, "*trials n"]:
    """Either loss was not finite, `patience` evaluations in a row."""
    return in_a_row(~(np.isfinite(train_loss) & np.isfinite(val_loss)), patience)


def rising(
    train_average: Float[np.ndarray, "*trials n"],
    val_loss: Float[np.ndarray, "*trials n"],
    *,
    window: int,
    least_slope: float,
    patience: int,
) -> Bool[np.ndarray, "*trials n"]:
    """Smoothed training loss and validation loss both rise by `least_slope` an evaluation, `patience` in a row."""
    both = (slope(train_average, window) >= least_slope) & (slope(val_loss, window) >= least_slope)
    return in_a_row(both, patience)


def blown_up(
    train_average: Float[np.ndarray, "*trials n"], *, factor: float, patience: int
) -> Bool[np.ndarray, "*trials n"]:
    """The smoothed training loss is above both `factor` times its best and its first value, `patience` in a row.

    Where the best is negative, `factor` times means as far above it as for the positive loss of the same size.
    """
    best = np.fmin.accumulate(train_average, axis=-1)
    first = np.argmax(np.isfinite(train_average), axis=-1)[..., None]
    initial = np.take_along_axis(train_average, first, axis=-1)
    limit = np.fmax(best + (factor - 1.0) * np.abs(best), initial)
    return in_a_row(train_average > limit, patience)


def overfitting(
    train_average: Float[np.ndarray, "*trials n"],
    val_loss: Float[np.ndarray, "*trials n"],
    *,
    gap: float,
    patience: int,
) -> Bool[np.ndarray, "*trials n"]:
    """Validation loss v exceeds the smoothed training loss m by (v − m)/|m| > `gap`, `patience` in a row."""
    return in_a_row(_finite_or_nan(val_loss) - train_average > gap * np.abs(train_average), patience)


def stalled(val_loss: Float[np.ndarray, "*trials n"], patience: int) -> Bool[np.ndarray, "*trials n"]:
    """The last `patience` evaluations brought no validation loss below the best before them."""
    val_loss = _finite_or_nan(val_loss)
    best = np.fmin.accumulate(val_loss, axis=-1)
    improved = np.zeros(val_loss.shape, bool)
    improved[..., :1] = True
    improved[..., 1:] = (val_loss[..., 1:] < best[..., :-1]) | (np.isnan(best[..., :-1]) & ~np.isnan(best[..., 1:]))
    return in_a_row(~improved, patience)


def last_loss(curve: Curve) -> float:
    """The last validation loss; inf where it is not finite or there is none."""
    return float(curve.val_loss[-1]) if curve.val_loss.size and np.isfinite(curve.val_loss[-1]) else np.inf


def best_loss(curve: Curve) -> float:
    """The lowest validation loss so far; inf where the last one is not finite, as in `last_loss`."""
    return float(np.nanmin(_finite_or_nan(curve.val_loss))) if np.isfinite(last_loss(curve)) else np.inf


def mean_loss(curve: Curve) -> float:
    """The mean of the finite validation losses so far; inf where the last one is not finite."""
    return float(np.mean(curve.val_loss[np.isfinite(curve.val_loss)])) if np.isfinite(last_loss(curve)) else np.inf


def projected_loss(curve: Curve, *, span: float, horizon: float) -> float:
    """Where a falling validation loss is heading.

    A least-squares line through the evaluations of the last `span` of the schedule is followed for `horizon` of what
    remains of it. A line that rises is followed nowhere: the projection is then its value at the last evaluation.

    Args:
        curve: The trial's evaluations.
        span: Share of the schedule.
        horizon: Share of the remaining schedule.

    Returns:
        The projected loss; the last loss where there are fewer than two evaluations in the span; inf where the last
        loss is not finite.
    """
    last = last_loss(curve)
    recent = _recent(curve, span)
    if not np.isfinite(last) or np.count_nonzero(recent) < 2:
        return last
    x, y = curve.fraction[recent], curve.val_loss[recent]
    with np.errstate(over="ignore", invalid="ignore"):
        centred = x - x.mean()
        tilt = centred @ y / (centred @ centred)
        now = y.mean() + tilt * (x[-1] - x.mean())
        projected = now + min(tilt, 0.0) * horizon * (1.0 - x[-1])
    return float(projected) if np.isfinite(projected) else last


def scatter(curve: Curve, *, span: float) -> float:
    """Standard deviation of the noise in the validation losses of the last `span` of the schedule.

    Second differences remove any straight trend and carry six times the variance of independent noise.

    Returns:
        In units of the loss; 0 where there are fewer than three evaluations in the span.
    """
    recent = curve.val_loss[_recent(curve, span)]
    if recent.size < 3:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        noise = float(np.sqrt(np.mean(np.diff(recent, 2) ** 2) / 6.0))
    return noise if np.isfinite(noise) else 0.0


def ranking(losses: Mapping[str, float]) -> list[str]:
    """Trial names from the lowest loss to the highest; equal losses in the order of their names."""
    return sorted(losses, key=lambda name: (losses[name], name))


def _recent(curve: Curve, span: float) -> np.ndarray:
    """Mask of the finite evaluations in the last `span` of the schedule."""
    return (curve.fraction > curve.fraction[-1:] - span - 1e-9) & np.isfinite(curve.val_loss)


def _finite_or_nan(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)
