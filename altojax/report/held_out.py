"""The test at the end of a task: losses of its winner and of the base over rows, or pairs, that chose nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from jaxrun.terminal.printable import printable
from jaxrun.terminal.sizes import counted

LOOKS = "held_out"
"""Key of the journal's fact that has what was measured on held-out rows: by task, then by digest of the adapter."""


@dataclass(frozen=True)
class HeldOut:
    """Losses over held-out rows, in nats per target token; or over pairs, a loss of them each.

    Attributes:
        trial: The trial whose exported adapter was measured.
        rows: Rows, or pairs.
        targets: Tokens that the loss counts, or again pairs.
        loss: Of the adapter.
        base_loss: Of the base alone, over the same rows.
        error: Standard error of `loss` − `base_loss` over rows, which are paired; None of a single row.
        look: 1, or more where adapters of this task were measured on these rows before.
        accuracy: Share of pairs whose chosen answer has the higher reward with the adapter; None of rows.
    """

    trial: str
    rows: int
    targets: int
    loss: float
    base_loss: float
    error: float | None
    look: int = 1
    accuracy: float | None = None

    @classmethod
    def of_rows(cls, trial: str, adapter: Sequence[float], base: Sequence[float], targets: Sequence[int]) -> Self:
        """Returns the losses over rows, of sums of each row.

        The loss is a ratio of two sums over rows, of losses and of targets. The error is that of such a ratio
        (Cochran, "Sampling Techniques", 2.9) for rows drawn alike.

        Args:
            trial: The trial's name.
            adapter: Loss of each row with the adapter, summed over its targets.
            base: The same of the base.
            targets: Of each row.
        """
        with_adapter, alone, counts = (np.asarray(one, np.float64) for one in (adapter, base, targets))
        n, total = len(counts), counts.sum()
        apart = with_adapter - alone
        error = None
        if n > 1:
            around = apart - counts * (apart.sum() / total)
            error = float(np.sqrt(n / (n - 1) * np.square(around).sum()) / total)
        return cls(trial, n, int(total), float(with_adapter.sum() / total), float(alone.sum() / total), error)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """The inverse of `to_payload`."""
        error = payload["error"]
        return cls(
            trial=printable(str(payload["trial"])),
            rows=int(payload["rows"]),
            targets=int(payload["targets"]),
            loss=float(payload["loss"]),
            base_loss=float(payload["base_loss"]),
            error=None if error is None else float(error),
            look=int(payload["look"]),
            accuracy=None if (accuracy := payload.get("accuracy")) is None else float(accuracy),
        )

    def to_payload(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return asdict(self)

    @property
    def difference(self) -> float:
        """`loss` − `base_loss`: below 0 the adapter is the better one."""
        return self.loss - self.base_loss

    def sentence(self) -> str:
        """Says the losses, their difference and whether it can be told from none."""
        rows = counted(self.rows, "held-out row" if self.accuracy is None else "held-out pair")
        said = "" if self.accuracy is None else f"test accuracy {100 * self.accuracy:.1f} %, "
        said += f"test loss {self.loss:.4f} over {rows} (base {self.base_loss:.4f}"
        said += "; of one row no error is known)" if self.error is None else f"; {self._apart(self.error)})"
        if self.look > 1:
            said += f"; look {self.look} at these rows"
        return said

    def _apart(self, error: float) -> str:
        said = f"difference {self.difference:+.4f}, standard error {error:.4f}"
        # Not of losses that are not finite, of which no difference is known.
        unclear = math.isfinite(self.difference) and abs(self.difference) <= 2 * error
        return f"{said}, which may be chance" if unclear else said
