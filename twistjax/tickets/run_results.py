"""Results of a training, for those who compute with them: curves, tickets to draw and to export."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.models.perplexity import perplexity
from jaxrun.config.config import load_config
from jaxrun.config.python_values import path_of
from jaxrun.files.exports import make_way
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError
from jaxrun.store.frames import frame
from jaxrun.store.journal import Journal
from jaxrun.store.opening import refuse_run_of_another
from jaxrun.store.run_folder import state_of_run
from twistjax.report.loss_gap import warning
from twistjax.tickets.export import Exported
from twistjax.tickets.export import export as write_ticket
from twistjax.tickets.repair import repaired
from twistjax.tickets.sampling import Drawn, draw_tickets, write_tickets
from twistjax.tickets.settings import REPAIR_ROWS, TicketExportSettings, TicketSettings
from twistjax.training.central_model import TrainedRun, open_trained
from twistjax.training.prepare import scorer_of
from twistjax.training.rounds_plan import ticket_key


class TwistRun:
    """A run of ``twistjax train``, as its journal has it now: live, stopped or finished.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens it.

        Raises:
            UserError: There is none.
        """
        self.path = path_of(path, "run")
        self.state  # noqa: B018  # reads the journal

    def __repr__(self) -> str:
        return f"<TwistRun {self.path}: {self.state}>"

    @property
    def state(self) -> str:
        """Whether it is finished, live or interrupted, in words."""
        with self._journal() as journal:
            return state_of_run(finished=bool(journal.events("finish")), live=journal.live, verb="train")

    def curves(self) -> Any:
        """Returns a table of one row a loss: of the full model and of tickets of each kappa, in training and after.

        Returns:
            A pandas DataFrame where pandas is installed, else a list of dicts.
        """
        with self._journal() as journal:
            points = journal.points()
        return frame(
            [
                {
                    "model": point.trial,
                    "split": point.split,
                    "step": point.step,
                    "samples": point.samples,
                    "tokens": point.tokens,
                    "loss": point.loss,
                    "learning_rate": point.lr,
                    "seconds": point.time_s,
                }
                for point in points
            ]
        )

    def tickets(
        self,
        kappa: float | Sequence[float] | None = None,
        *,
        draws: int = 32,
        mix: int = 0,
        repair: bool = False,
        repair_rows: int = REPAIR_ROWS,
    ) -> Any:
        """Draws random subnetworks of the central model and scores them over the validation rows.

        The run's folder remembers the best, which `export` writes.

        Args:
            kappa: Shares to keep; None is those that were trained.
            draws: Random tickets of each.
            mix: Also mix the layers of this many best tickets; 0 does not.
            repair: Also score the best one after its repair.
            repair_rows: Training rows that are read for it.

        Returns:
            A row for each kappa, as a pandas DataFrame where pandas is installed, else as a list of dicts.

        Raises:
            UserError: A wrong number, or a run without a checkpoint.
        """
        given = {"kappa": kappa, "draws": draws, "mix": mix, "repair": repair, "repair_rows": repair_rows}
        found = draw(self.path, load_config(TicketSettings, given, source="tickets"))
        for line in found.warnings():
            warnings.warn(line, stacklevel=2)
        return frame(found.rows())

    def export(
        self,
        out: str | Path,
        *,
        kappa: float,
        ticket: str | int = "best",
        dtype: str = "float32",
        format: str = "hf",
        overwrite: bool = False,
        repair: bool = False,
        repair_rows: int = REPAIR_ROWS,
    ) -> Exported:
        """Writes a ticket as a Hugging Face model or a GGUF file, and reads it back.

        Args:
            out: Where to.
            kappa: The share to keep; 1 is the full model.
            ticket: ``best``, ``mix`` or the number of a random ticket.
            dtype: To write in: float32, bfloat16 or float16.
            format: hf, or gguf for a file OUT/NAME.gguf under the folder's name.
            overwrite: Replace an earlier export that is there, if it holds nothing else.
            repair: Re-fit the ticket's output projections on training rows.
            repair_rows: How many of them.

        Raises:
            UserError: No such ticket, or the folder cannot be written.
        """
        given = {"out": out, "kappa": kappa, "ticket": ticket, "dtype": dtype, "format": format}
        given |= {"overwrite": overwrite, "repair": repair, "repair_rows": repair_rows}
        made = export(self.path, load_config(TicketExportSettings, given, source="export"))
        if line := made.warning(kappa):
            warnings.warn(line, stacklevel=2)
        return made

    def _journal(self) -> Journal:
        journal = Journal.read(self.path)
        refuse_run_of_another(journal, "tasks", "twistjax train")
        return journal


class DrawnTickets(NamedTuple):
    """Tickets that were drawn of a run.

    Attributes:
        run: The run.
        full_loss: Of the full model over the validation rows, in nats per token.
        drawn: The tickets of each kappa, ascending.
    """

    run: TrainedRun
    full_loss: float
    drawn: Sequence[Drawn]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row of cells for each kappa, by column."""
        found = []
        for one in self.drawn:
            small = self.run.prepared.units.subnetwork(one.kappa)
            mean, deviation, best = one.perplexity
            found.append(
                {
                    "kappa": one.kappa,
                    "heads": small.num_heads,
                    "neurons": small.intermediate_size,
                    "mean_perplexity": mean,
                    "sd": deviation,
                    "best_perplexity": best,
                    "best": one.best,
                    "repaired_perplexity": None if one.repaired is None else perplexity(one.repaired),
                    "mix_perplexity": None if one.mixed is None else perplexity(one.mixed[0]),
                    "full_perplexity": perplexity(self.full_loss),
                }
            )
        return found

    @property
    def draws(self) -> bool:
        """Whether there are several tickets of a kappa."""
        return self.run.assignment.draws

    def warnings(self) -> list[str]:
        """Returns a line for each kappa whose best ticket is far worse than the full model."""
        lines = (
            warning(f"the best ticket of kappa {one.kappa:g}", min(one.losses), self.full_loss) for one in self.drawn
        )
        return [line for line in lines if line is not None]


def draw(run_dir: str | Path, settings: TicketSettings) -> DrawnTickets:
    """Draws tickets of a run, scores them, and writes what the run's folder remembers of them."""
    run = open_trained(run_dir)
    given = settings.kappa
    kappas = run.config.subnetworks.ladder if given is None else given if isinstance(given, list) else [given]
    if settings.repair and min(kappas) == 1:
        raise UserError("repair: given with kappa 1, expected a smaller kappa: the full model lacks nothing")
    scorer = scorer_of(run.config, run.prepared)
    full = scorer.full(run.weights, run.config.subnetworks.ladder[0])
    facts = {"round": run.round, "seed": run.config.seed, "full_perplexity": perplexity(full)}
    drawn: list[Drawn] = []
    for kappa in sorted(set(kappas)):
        own = draw_tickets(
            run.weights, run.assignment, scorer, kappa, seed=run.config.seed, draws=settings.draws, mix=settings.mix
        )
        if settings.repair and kappa < 1:
            best = run.assignment.draw(ticket_key(run.config.seed, own.best), kappa)
            small = run.prepared.units.subnetwork(kappa)
            fitted = repaired(run, small, scorer.cut(run.weights, best, kappa), settings.repair_rows)
            own = replace(own, repaired=scorer.model(small, fitted))
        drawn.append(own)
        write_tickets(run.run_dir, drawn, facts)
    return DrawnTickets(run, full, drawn)


def export(run_dir: str | Path, settings: TicketExportSettings) -> Exported:
    """Writes a ticket of a run."""
    out = from_home(settings.out)
    make_way(out, overwrite=settings.overwrite)
    rows = settings.repair_rows if settings.repair else 0
    run, ticket = open_trained(run_dir), str(settings.ticket)
    form = settings.format
    return write_ticket(run, out, settings.kappa, ticket, dtype=settings.dtype, repair_rows=rows, form=form)
