"""Tickets: random subnetworks of the central model, scored; the best of them, and a mix of the layers of the best."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backbone.perplexity import mean_and_deviation, perplexity
from harness.errors import UserError
from harness.files import write_atomic
from twistjax.dispatch import Weights
from twistjax.plan import ticket_key
from twistjax.scoring import Scorer
from twistjax.units import Kept, Units

FILE_NAME = "tickets.json"


@dataclass(frozen=True)
class Drawn:
    """Random tickets of one kappa.

    Attributes:
        kappa: The share they keep.
        losses: Validation loss of ticket 0, 1, …, in nats per target.
        mixed: Loss and units of the greedy mix, where one was made.
    """

    kappa: float
    losses: tuple[float, ...]
    mixed: tuple[float, Kept] | None = None

    @property
    def best(self) -> int:
        """The ticket of the lowest loss."""
        return int(np.argmin(self.losses))

    @property
    def perplexity(self) -> tuple[float, float, float]:
        """Mean and standard deviation over the tickets, and the best."""
        return (*mean_and_deviation(self.losses), perplexity(min(self.losses)))


def draw_tickets(
    weights: Weights, units: Units, scorer: Scorer, kappa: float, *, seed: int, draws: int, mix: int = 0
) -> Drawn:
    """Draws random tickets and scores them.

    Args:
        weights: The central model's.
        units: Its units.
        scorer: Scores them.
        kappa: The share to keep.
        seed: The run's.
        draws: How many.
        mix: Also tries, layer by layer, to put those of this many best tickets in place of the very best one's, and
            keeps what lowers the loss; 0 does not.
    """
    keep = [units.draw(ticket_key(seed, number), kappa) for number in range(draws)]
    losses = [scorer.ticket(weights, kept, kappa) for kept in keep]
    mixed = None
    if mix > 1:
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
    """Writes RUN/tickets.json; kappas that it already tells of stay unless they are given anew."""
    path = run_dir / FILE_NAME
    told = _read(run_dir).get("kappas", {}) if _read(run_dir).get("facts") == dict(facts) else {}
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
        told[f"{one.kappa:g}"] = entry
    ordered = dict(sorted(told.items(), key=lambda item: float(item[0])))
    write_atomic(path, json.dumps({"facts": dict(facts), "kappas": ordered}) + "\n")
    return path


def find_ticket(run_dir: Path, units: Units, kappa: float, seed: int, ticket: str) -> tuple[Kept, float | None]:
    """Returns a ticket's units, and its validation loss where it is known.

    Args:
        run_dir: The run's folder.
        units: The model's units.
        kappa: The share it keeps.
        seed: The run's.
        ticket: ``best``, ``mix`` or the number of a random ticket.

    Raises:
        UserError: The best or the mix of tickets that nobody has drawn.
    """
    entry = _read(run_dir).get("kappas", {}).get(f"{kappa:g}")
    if ticket.isdecimal():
        losses = [] if entry is None else entry["losses"]
        number = int(ticket)
        return units.draw(ticket_key(seed, number), kappa), losses[number] if number < len(losses) else None
    if ticket not in ("best", "mix"):
        raise UserError(f"ticket: given '{ticket}', expected best, mix or the number of a ticket")
    if entry is None or (ticket == "mix" and "mix" not in entry):
        more = " mix=4" if ticket == "mix" else ""
        raise UserError(
            f"{run_dir}: no {ticket} ticket of kappa {kappa:g} is known, "
            f"expected `twistjax tickets {run_dir} kappa={kappa:g}{more}` first, or ticket=0 for a random one"
        )
    if ticket == "best":
        return units.draw(ticket_key(seed, entry["best"]), kappa), min(entry["losses"])
    return Kept(*(jnp.asarray(entry["mix"][name], jnp.int32) for name in Kept._fields)), entry["mix"]["loss"]


def _read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / FILE_NAME
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}), expected what `twistjax tickets` wrote") from error
    return told if isinstance(told, dict) else {}
