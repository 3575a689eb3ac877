"""Which units a subnetwork gets: drawn, as TwIST does, by importance, or an important core and the rest drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted
from twistjax.training.importance import Order
from twistjax.training.units import Kept, Units, around, kept_of


@dataclass(frozen=True, eq=False)
class Assignment:
    """How units are assigned.

    Attributes:
        units: The full model's.
        order: Them by importance; None where all are drawn.
        core: How many of the most important heads (of a row) and MLP blocks every subnetwork has; None is as many as
            it keeps, so that it is the same one every time, and those of all kappas nest.
    """

    units: Units
    order: Order | None = None
    core: tuple[int, int] | None = None

    @property
    def draws(self) -> bool:
        """Whether there are several subnetworks of one kappa."""
        return self.order is None or self.core is not None

    def deal(self, key: PRNGKeyArray, kappas: Sequence[float]) -> list[Kept]:
        """Assigns units to the workers of a round, each of which keeps its own kappa; all drawn ones have a holder.

        Raises:
            UserError: As `Units.deal`.
        """
        return self.units.deal(key, kappas) if self.order is None else self._by_importance(self.order, key, kappas)

    def draw(self, key: PRNGKeyArray, kappa: float) -> Kept:
        """Returns a random subnetwork, a ticket; by importance alone the only one there is."""
        return self.units.draw(key, kappa) if self.order is None else self._by_importance(self.order, key, [kappa])[0]

    def _by_importance(self, order: Order, key: PRNGKeyArray, kappas: Sequence[float]) -> list[Kept]:
        numbers, sizes = (self.units.heads, self.units.blocks), self.core or (None, None)
        parts = [
            _with_core(own, ranked, core, [kept_of(number, kappa) for kappa in kappas])
            for own, ranked, core, number in zip(jax.random.split(key), order, sizes, numbers, strict=True)
        ]
        return [self.units.kept(heads, blocks) for heads, blocks in zip(*parts, strict=True)]


def core_of(units: Units, share: float, kappas: Sequence[float], workers: int) -> tuple[int, int]:
    """Returns how many heads (of a row) and MLP blocks are everybody's: a share of the smallest subnetwork's.

    Args:
        units: The full model's.
        share: Which; what it is of heads or blocks is rounded down.
        kappas: Of the run.
        workers: Of a round.

    Raises:
        UserError: They cannot hold all the others between them.
    """
    least = min(kappas)
    kept = [kept_of(number, least) for number in (units.heads, units.blocks)]
    heads, blocks = (math.floor(round(share * count, 9)) for count in kept)
    spare = zip((units.heads - heads, units.blocks - blocks), (kept[0] - heads, kept[1] - blocks), strict=True)
    needed = max(math.ceil(number / own) for number, own in spare)
    if workers < needed:
        raise UserError(
            f"subnetworks.workers: given {workers}, which with a core of {share:g} draw too few of the other units to "
            f"hold all of them; expected at least {needed} workers of kappa {least:g}, or a smaller core"
        )
    return heads, blocks


def check_core(units: Units, share: float, kappas: Sequence[float], workers: int) -> None:
    """Refuses a core that cannot be, or that is nothing; arguments and errors as of `core_of`."""
    if not any(core_of(units, share, kappas, workers)):
        heads, blocks = (kept_of(number, min(kappas)) for number in (units.heads, units.blocks))
        raise UserError(
            f"subnetworks.core: given {share:g}, no unit of the smallest subnetwork's {counted(heads, 'head')} "
            f"in a row and {counted(blocks, 'MLP block')}; expected a larger core, or a smaller subnetworks.block"
        )


def _with_core(
    key: PRNGKeyArray, ranked: Int[Array, "*rows units"], core: int | None, counts: Sequence[int]
) -> list[Int[Array, "*rows count"]]:
    """Returns each worker's: the first ones by rank, or those of the core and some that are drawn, ascending."""
    if core is None:
        return [ranked[..., :count] for count in counts]
    own = [min(core, count) for count in counts]
    drawn = around(key, ranked[..., core:], [count - mine for count, mine in zip(counts, own, strict=True)])
    pairs = zip(own, drawn, strict=True)
    return [jnp.sort(jnp.concatenate([ranked[..., :mine], rest], axis=-1), axis=-1) for mine, rest in pairs]
