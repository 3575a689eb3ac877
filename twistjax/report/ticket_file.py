"""The file of a run's tickets, as it is read back: RUN/tickets.json."""

from pathlib import Path
from typing import Annotated

import pydantic

from jaxrun.config.config import StrictModel, check_config
from jaxrun.files.foreign_files import read_json

FILE_NAME = "tickets.json"


class _Perplexity(StrictModel):
    mean: float
    sd: float
    best: float


class Mix(StrictModel):
    """A ticket mixed of the layers of the best ones: its loss, and the units that each layer keeps."""

    loss: float
    heads: list[list[int]]
    kv_heads: list[list[int]]
    neurons: list[list[int]]


class TicketScores(StrictModel):
    """Scores of the random tickets of one kappa.

    Attributes:
        perplexity: Mean, standard deviation and the lowest.
        best: The ticket of the lowest.
        losses: Of ticket 0, 1, …, in nats per target.
        mix: Loss and units of the greedy mix, where one was made.
        repaired: Loss of the best after its repair, where it was asked for.
    """

    perplexity: _Perplexity
    best: Annotated[int, pydantic.Field(ge=0)]
    losses: Annotated[list[float], pydantic.Field(min_length=1)]
    mix: Mix | None = None
    repaired: float | None = None


class _Facts(StrictModel):
    round: int
    seed: int
    full_perplexity: Annotated[float, pydantic.Field(gt=0)]


class TicketFile(StrictModel):
    """RUN/tickets.json.

    Attributes:
        facts: What the tickets are of.
        kappas: Tickets by kappa, ascending.
    """

    facts: _Facts
    kappas: dict[Annotated[str, pydantic.Field(pattern=r"^[0-9]+(\.[0-9]+)?(e-[0-9]+)?$")], TicketScores]


def read_tickets(run_dir: Path) -> TicketFile | None:
    """Returns what is known of a run's tickets; None where none were drawn.

    Raises:
        UserError: The file is not as `write_tickets` writes it.
    """
    path = run_dir / FILE_NAME
    return check_config(TicketFile, read_json(path), str(path)) if path.is_file() else None
