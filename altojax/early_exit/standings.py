"""Standings of trials that have come unequally far: any two are compared where both have been."""

from collections.abc import Mapping

import numpy as np

from altojax.early_exit.curve import Curve


def standings(curves: Mapping[str, Curve]) -> dict[str, float]:
    """Returns the share of the others that stand before each trial: 0 is the best, 1 the worst.

    Of two trials the one stands before that had the lower validation loss by the share of the schedule which the
    shorter curve has come to; half, where they are equal. A loss that was never finite stands behind all that were.

    Args:
        curves: The evaluations of each trial by name, at least one each. Those of a schedule's steps fall on the next
            whole step: shares that differ by less than half of a curve's first are the same.
    """
    lowest = {name: _lowest_so_far(curve.val_loss) for name, curve in curves.items()}
    reached = np.array([curve.fraction[-1] for curve in curves.values()])
    at = np.empty((len(curves), len(curves)))
    for row, (name, curve) in zip(at, curves.items(), strict=True):
        common = np.minimum(reached, curve.fraction[-1]) + curve.fraction[0] / 2
        row[:] = np.concatenate([[np.inf], lowest[name]])[np.searchsorted(curve.fraction, common, side="right")]
    before = (at > at.T) + 0.5 * (at == at.T)
    np.fill_diagonal(before, 0.0)
    return dict(zip(curves, (before.sum(axis=1) / max(len(curves) - 1, 1)).tolist(), strict=True))


def _lowest_so_far(losses: np.ndarray) -> np.ndarray:
    return np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf))
