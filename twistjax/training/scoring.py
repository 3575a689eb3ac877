"""Scores of subnetworks: mean loss over rows of text, with programs compiled once for a kappa."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int32

from jaxlm.families.config import ModelConfig
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from twistjax.training.gather_scatter import Correction, Weights, corrected, gather
from twistjax.training.local_training import text_nll
from twistjax.training.units import Kept, Units


class Scorer:
    """Scores tickets and full models over the same rows."""

    def __init__(
        self,
        units: Units,
        correction: Correction,
        tokens: Int32[np.ndarray, "rows length"],
        targets: Bool[np.ndarray, "rows length"],
        *,
        dtype: DTypeLike,
        rows_at_once: int,
    ):
        """Compiles nothing yet.

        Args:
            units: The full model's.
            correction: Of tickets, or of the full model.
            tokens: int32 rows.
            targets: Which tokens count.
            dtype: Of the computation.
            rows_at_once: Rows of a batch.
        """
        self.units, self.correction, self.dtype = units, correction, dtype
        self.batches = list(batches(tokens, targets, rows_at_once))

    def ticket(self, central: Weights, kept: Kept, kappa: float) -> float:
        """Returns a ticket's mean loss in nats per target."""
        return self.model(self.units.subnetwork(kappa), self.cut(central, kept, kappa))

    def cut(self, central: Weights, kept: Kept, kappa: float) -> dict[str, Array]:
        """Returns a ticket's weights, the correction folded in."""
        return _cutter(self.units, kappa, self.correction)(central, kept)

    def full(self, central: Weights, kappa: float) -> float:
        """Returns the full model's mean loss, corrected where the correction is the full model's."""
        scaled = corrected(central, self.units, kappa, self.correction, full=True)
        return self.model(self.units.config, scaled)

    def model(self, config: ModelConfig, weights: Mapping[str, Array]) -> float:
        """Returns the mean loss of any model over the rows."""
        return mean_loss(_losses(config, np.dtype(self.dtype)), weights, self.batches)


def model_loss(
    model: Transformer,
    tokens: Int32[np.ndarray, "rows length"],
    targets: Bool[np.ndarray, "rows length"],
    rows_at_once: int,
) -> float:
    """Returns a model's mean loss over rows, in nats per target."""
    rows = batches(tokens, targets, rows_at_once)
    return mean_loss(_losses(model.config, np.dtype(model.dtype)), weights_by_path(model, model.dtype), rows)


def mean_loss(losses: Callable[..., Any], weights: Weights, rows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the mean over all targets of all batches; `losses` gives a batch's sum and count."""
    parts = [losses(weights, tokens, targets) for tokens, targets in rows]
    return math.fsum(float(total) for total, _ in parts) / max(1.0, math.fsum(float(count) for _, count in parts))


def batches(
    tokens: Int32[np.ndarray, "rows length"], targets: Bool[np.ndarray, "rows length"], size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts rows into batches of one size; rows that fill up the last one count nothing."""
    size = min(size, len(tokens))
    spare = -len(tokens) % size
    tokens, targets = (np.pad(part, ((0, spare), (0, 0))) for part in (tokens, targets))
    return [(tokens[first : first + size], targets[first : first + size]) for first in range(0, len(tokens), size)]


@cache
def _cutter(units: Units, kappa: float, correction: Correction) -> Callable[..., dict[str, Array]]:
    """Returns the compiled cut of a ticket's weights out of a full model's."""

    def cut(central: Weights, kept: Kept) -> dict[str, Array]:
        return corrected(gather(central, kept, units), units, kappa, correction, full=False)

    return jax.jit(cut)


@cache
def _losses(config: ModelConfig, dtype: np.dtype) -> Callable[..., Any]:
    """Returns the compiled loss of a model of these shapes: of a batch, the sum and how many targets it is of."""
    model = Functional(config, dtype=dtype)
    return jax.jit(lambda weights, tokens, targets: text_nll(model, weights, tokens, targets))
