"""Scores of subnetworks: mean loss over rows of text, with programs compiled once for a kappa."""

import math
from collections.abc import Callable, Mapping
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
        self._cuts: dict[float, Callable[..., dict[str, Array]]] = {}
        self._losses: dict[ModelConfig, Callable[..., Any]] = {}

    def ticket(self, central: Weights, kept: Kept, kappa: float) -> float:
        """Returns a ticket's mean loss in nats per target."""
        return self.model(self.units.subnetwork(kappa), self.cut(central, kept, kappa))

    def cut(self, central: Weights, kept: Kept, kappa: float) -> dict[str, Array]:
        """Returns a ticket's weights, the correction folded in."""
        if kappa not in self._cuts:

            def cut(central: Weights, kept: Kept) -> dict[str, Array]:
                return corrected(gather(central, kept, self.units), self.units, kappa, self.correction, full=False)

            self._cuts[kappa] = jax.jit(cut)
        return self._cuts[kappa](central, kept)

    def full(self, central: Weights, kappa: float) -> float:
        """Returns the full model's mean loss, corrected where the correction is the full model's."""
        scaled = corrected(central, self.units, kappa, self.correction, full=True)
        return self.model(self.units.config, scaled)

    def model(self, config: ModelConfig, weights: Mapping[str, Array]) -> float:
        """Returns the mean loss of any model over the rows."""
        if config not in self._losses:
            model = Functional(config, dtype=self.dtype)
            self._losses[config] = jax.jit(lambda weights, tokens, targets: text_nll(model, weights, tokens, targets))
        return mean_loss(self._losses[config], weights, self.batches)


def model_loss(
    model: Transformer,
    tokens: Int32[np.ndarray, "rows length"],
    targets: Bool[np.ndarray, "rows length"],
    rows_at_once: int,
) -> float:
    """Returns a model's mean loss over rows, in nats per target."""
    functional = Functional(model.config, dtype=model.dtype)
    losses = jax.jit(lambda weights, tokens, targets: text_nll(functional, weights, tokens, targets))
    return mean_loss(losses, weights_by_path(model, model.dtype), batches(tokens, targets, rows_at_once))


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
