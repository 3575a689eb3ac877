"""One-shot pruning of a dense model: what tickets are compared with."""

from twistjax.calibration import Statistics, calibrate
from twistjax.comparison.pruning.structured import choose_units
from twistjax.comparison.pruning.unstructured import Sparsity, prune_unstructured

__all__ = ["Sparsity", "Statistics", "calibrate", "choose_units", "prune_unstructured"]
