"""Tickets: random subnetworks of the central model, scored; the best of them, and a mix of the layers of the best."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.families.config import ModelConfig
from jaxlm.models.perplexity import mean_and_deviation, perplexity
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from twistjax.report.ticket_file import FILE_NAME, Mix, read_tickets
from twistjax.training.assignment import Assignment
from twistjax.training.gather_scatter import Weights
from twistjax.training.rounds_plan import ticket_key
from twistjax.training.scoring import Scorer
from twistjax.training.units import Kept


@dataclass(frozen=True)
class Drawn:
    """Random tickets of one kappa.

    Attributes:
        kappa: The share they keep.
        losses: Validation loss of ticket 0, 1, …, in nats per target.
        mixed: Loss and units of the greedy mix, where one was made.
        repaired: Loss of the best after its repair, where it was asked for.
    """

    kappa: float
    losses: tuple[float, ...]
    mixed: tuple[float, Kept] | None = None
    repaired: float | None = None

    @property
    def best(self) -> int:
        """The ticket of the lowest loss."""
        return int(np.argmin(self.losses))

    @property
    def perplexity(self) -> tuple[float, float, float]:
        """Mean and standard deviation over the tickets, and the best."""
        return (*mean_and_deviation(self.losses), perplexity(min(self.losses)))


def draw_tickets(
    weights: Weights, assignment: Assignment, scorer: Scorer, kappa: float, *, seed: int, draws: int, mix: int = 0
) -> Drawn:
    """Draws random tickets and scores them; where there is one of each kappa, it.

    Args:
        weights: The central model's.
        assignment: Which units tickets have.
        scorer: Scores them.
        kappa: The share to keep.
        seed: The run's.
        draws: How many.
        mix: Also tries, layer by layer, to put those of this many best tickets in place of the very best one's, and
            keeps what lowers the loss; 0 does not.
    """
    keep = [assignment.draw(ticket_key(seed, number), kappa) for number in range(draws if assignment.draws else 1)]
    losses = [scorer.ticket(weights, kept, kappa) for kept in keep]
    mixed = None
    if mix > 1 and assignment.draws:
        best = [keep[number] for number in np.argsort(losses)[:mix]]
        mixed = _mix(weights, scorer, kappa, best, min(losses))
    return Drawn(kappa, tuple(losses), mixed)


def _mix(weights: Weights, scorer: Scorer, kappa: float, best: Sequence[Kept], loss: float) -> tuple[float, Kept]:
    """Returns the greedy mix of layers, which begins with the first of `best`, whose loss is given."""
    mixed = best[0]
    for layer in range(mixed.neurons.shape[0]):
        for other in best[1:]:
            tried = jax.tree.map(lambda mine, its: mine.at[layer].set(its[layer]), mixed, other)  # noqa: B023
            if (found := scorer.ticket(weights, tried, kappa)) < loss:
                mixed, loss = tried, found
    return loss, mixed


def write_tickets(run_dir: Path, drawn: Sequence[Drawn], facts: Mapping[str, Any]) -> Path:
    """Writes RUN/tickets.json; kappas that are in it already stay unless they are given anew."""
    path = run_dir / FILE_NAME
    known = read_tickets(run_dir)
    told: dict[str, Any] = {}
    if known is not None and known.facts.model_dump() == dict(facts):
        told = known.model_dump(exclude_none=True)["kappas"]
    for one in drawn:
        mean, deviation, best = one.perplexity
        entry: dict[str, Any] = {
            "perplexity": {"mean": mean, "sd": deviation, "best": best},
            "best": one.best,
            "losses": list(one.losses),
        }
        if one.mixed is not None:
            loss, kept = one.mixed
            entry["mix"] = {
                "loss": loss,
                **{name: np.asarray(part).tolist() for name, part in kept._asdict().items()},
            }
        if one.repaired is not None:
            entry["repaired"] = one.repaired
        told[f"{one.kappa:g}"] = entry
    ordered = dict(sorted(told.items(), key=lambda item: float(item[0])))
    write_atomic(path, json.dumps({"facts": dict(facts), "kappas": ordered}) + "\n")
    return path


def find_ticket(
    run_dir: Path, assignment: Assignment, kappa: float, seed: int, ticket: str
) -> tuple[Kept, float | None]:
    """Returns a ticket's units, and its validation loss where it is known.

    Args:
        run_dir: The run's folder.
        assignment: Which units tickets have.
        kappa: The share it keeps.
        seed: The run's.
        ticket: ``best``, ``mix`` or the number of a random ticket.

    Raises:
        UserError: The best or the mix of tickets that nobody has drawn; another than the only one there is.
    """
    if not assignment.draws and ticket != "best":
        raise UserError(f"ticket: given '{ticket}', expected best: by importance there is one ticket of a kappa")
    known = read_tickets(run_dir)
    entry = None if known is None else known.kappas.get(f"{kappa:g}")
    if not assignment.draws:
        return assignment.draw(ticket_key(seed, 0), kappa), None if entry is None else entry.losses[0]
    if ticket.isdecimal():
        losses = [] if entry is None else entry.losses
        number = int(ticket)
        return assignment.draw(ticket_key(seed, number), kappa), losses[number] if number < len(losses) else None
    if ticket not in ("best", "mix"):
        raise UserError(f"ticket: given '{ticket}', expected best, mix or the number of a ticket")
    if entry is None or (ticket == "mix" and entry.mix is None):
        more = " mix=4" if ticket == "mix" else ""
        raise UserError(
            f"{run_dir}: no {ticket} ticket of kappa {kappa:g} is known, "
            f"expected `twistjax tickets {run_dir} kappa={kappa:g}{more}` first, or ticket=0 for a random one"
        )
    best = assignment.draw(ticket_key(seed, entry.best), kappa)
    if ticket == "best":
        return best, min(entry.losses)
    assert entry.mix is not None
    return _mixed(entry.mix, best, assignment.units.config, run_dir / FILE_NAME), entry.mix.loss


def _mixed(mix: Mix, like: Kept, config: ModelConfig, path: Path) -> Kept:
    """Returns the units of a mix, which are as many as those of a ticket that is `like` it."""
    most = (config.num_heads, config.num_kv_heads, config.intermediate_size)
    parts = []
    for name, one, end in zip(Kept._fields, like, most, strict=True):
        rows = getattr(mix, name)
        fits = all(len(row) == one.shape[1] and set(row) <= set(range(end)) for row in rows)
        if len(rows) != one.shape[0] or not fits:
            raise UserError(f"{path}: {name} of the mix are not of this model, expected what `twistjax tickets` wrote")
        parts.append(jnp.asarray(rows, jnp.int32))
    return Kept(*parts)
