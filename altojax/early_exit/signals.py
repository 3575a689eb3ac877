"""Arithmetic on loss curves that several rules share: pure functions, without devices, clocks or configs.

What answers for every evaluation at once does so from that evaluation and those before it only, over arrays of any
leading shape. A loss that is infinite counts as not a number throughout.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from altojax.early_exit.curve import Curve


def smoothed(loss: Float[np.ndarray, "*trials n"], coefficient: float) -> Float[np.ndarray, "*trials n"]:
    """Exponential moving average m_t = a·l_t + (1 − a)·m_{t−1} with m_1 = l_1; what is not finite is skipped.

    Args:
        loss: Losses, oldest first.
        coefficient: a, in (0, 1]; 1 leaves the losses as they are.

    Returns:
        The average after each evaluation, float64; nan before the first finite loss.
    """
    loss = finite_or_nan(loss)
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
        windows = np.lib.stride_tricks.sliding_window_view(finite_or_nan(loss), window, axis=-1)
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


def last_loss(curve: Curve) -> float:
    """The last validation loss; inf where it is not finite or there is none."""
    return float(curve.val_loss[-1]) if curve.val_loss.size and np.isfinite(curve.val_loss[-1]) else np.inf


def best_loss(curve: Curve) -> float:
    """The lowest validation loss so far; inf where the last one is not finite, as in `last_loss`."""
    return float(np.nanmin(finite_or_nan(curve.val_loss))) if np.isfinite(last_loss(curve)) else np.inf


def mean_loss(curve: Curve) -> float:
    """The mean of the finite validation losses so far; inf where the last one is not finite."""
    return float(np.mean(curve.val_loss[np.isfinite(curve.val_loss)])) if np.isfinite(last_loss(curve)) else np.inf


def ranking(losses: Mapping[str, float]) -> list[str]:
    """Trial names from the lowest loss to the highest; equal losses in the order of their names."""
    return sorted(losses, key=lambda name: (losses[name], name))


def finite_or_nan(values: np.ndarray) -> np.ndarray:
    """Returns float64 with nan in place of what is not finite."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)
