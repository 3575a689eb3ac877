"""A run's report from what is on its disk: curves of every kappa, its tickets, and what it was compared with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.models.perplexity import mean_and_deviation
from jaxrun.files.atomic import write_atomic
from jaxrun.plots.pages import Table, render
from jaxrun.plots.pictures import Picture, save_pictures
from jaxrun.plots.plots import Series, bars, loss_curves
from jaxrun.store.journal import Journal
from jaxrun.store.opening import refuse_run_of_another
from jaxrun.store.records import Point
from jaxrun.store.run_folder import state_of_run
from jaxrun.terminal.printable import printable, printable_data
from jaxrun.terminal.progress import duration
from twistjax.report.loss_gap import warning
from twistjax.report.results import Result, read_results
from twistjax.report.ticket_file import TicketFile, TicketScores, read_tickets


def write_report(run_dir: str | Path) -> list[Path]:
    """Writes plots/*.png and report.html into a run's folder, of a finished run or a live one.

    Returns:
        What was written.

    Raises:
        UserError: There is no run, or its folder cannot be written.
    """
    run_dir = Path(run_dir)
    with Journal.read(run_dir) as journal:
        refuse_run_of_another(journal, "tasks", "twistjax train")
        with journal.interpreted():
            facts = _facts(run_dir, journal)
        points, config_text = journal.points(), journal.config_text
    page = _page(run_dir, facts, points, config_text, read_tickets(run_dir), read_results(run_dir).results)
    write_atomic(run_dir / "report.html", page)
    return [run_dir / "plots", run_dir / "report.html"]


def _facts(run_dir: Path, journal: Journal) -> dict[str, Any]:
    """Returns what of the page a journal's records say, by the name that the template has for it."""
    points, clock, plan = journal.points(), printable_data(journal.get("clock", {})), journal.get("plan", {})
    start = [event.payload for event in journal.events("run_start")]
    state = state_of_run(finished=bool(journal.events("finish")), live=journal.live, verb="train")
    return {
        "subtitle": f"The run is {state}.",
        "results": _results(points),
        "numbers": _numbers(plan, clock, start),
        "use": _use(run_dir, points),
    }


def _page(
    run_dir: Path,
    facts: Mapping[str, Any],
    points: Sequence[Point],
    config_text: str,
    drawn: TicketFile | None,
    baselines: Sequence[Result],
) -> str:
    """Draws the pictures and returns the page."""
    tickets = {} if drawn is None else drawn.kappas
    full = None if drawn is None else ("full model", drawn.facts.full_perplexity)
    full_loss = math.log(full[1]) if full else math.nan
    pictures = [_curve_picture(points), *_ticket_pictures(tickets, points, full), *_baseline_pictures(baselines)]
    save_pictures(run_dir / "plots", pictures)
    return render(
        "twistjax.report",
        "report.html.j2",
        title=f"twistjax: {run_dir.name}",
        run_dir=run_dir,
        pictures={picture.name: picture for picture in pictures},
        tickets=_tickets(tickets),
        warnings=_warnings(tickets, full_loss),
        baselines=_baselines(baselines),
        config_text=config_text,
        **facts,
    )


def _curve_picture(points: Sequence[Point]) -> Picture:
    curves = [
        Series(
            [point.tokens for point in own],
            [math.nan if point.loss is None else _perplexity([point.loss]) for point in own],
            group=name,
            label=name,
            name=f"{name}, {split}",
            emphasis=split == "validation",
        )
        for (name, split), own in _curves(points).items()
    ]
    figure = loss_curves(
        curves,
        title="Perplexity",
        x_label="tokens, all workers together",
        y_label="perplexity",
        log_y=True,
        count_groups=False,
    )
    caption = (
        "Thick: on validation text, of the full model and of every kappa, out of the mean loss of a few tickets, or "
        "of the one that there is. Thin: of the workers on what they train on."
    )
    return Picture("perplexity", "Perplexity", caption, figure)


def _curves(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    curves: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        curves.setdefault((printable(str(point.trial)), printable(point.split)), []).append(point)
    return dict(sorted(curves.items()))


def _ticket_pictures(
    tickets: Mapping[str, TicketScores], points: Sequence[Point], full: tuple[str, float] | None
) -> list[Picture]:
    if not tickets:
        return []
    labels = [f"kappa {kappa}" for kappa in tickets]
    before = {
        name: math.nan if own[0].loss is None else _perplexity([own[0].loss])
        for (name, split), own in _curves(points).items()
        if split == "validation"
    }
    columns = {"before training": [before.get(label, math.nan) for label in labels]}
    several = any(len(entry.losses) > 1 for entry in tickets.values())
    shown = {"mean after it": "mean", "best after it": "best"} if several else {"after it": "best"}
    columns |= {label: [getattr(one.perplexity, name) for one in tickets.values()] for label, name in shown.items()}
    title = "Random tickets" if several else "Tickets"
    figure = bars(labels, columns, title=title, value_label="validation perplexity", log=True, reference=full)
    caption = (
        "Perplexity of random subnetworks of each kappa: of a few before training, and the mean over all that were "
        "drawn since and the best of them."
        if several
        else "Perplexity of the ticket of each kappa, before training and after it."
    )
    return [Picture("tickets", title, f"{caption} Dashed: the full model after training.", figure)]


def _baseline_pictures(results: Sequence[Result]) -> list[Picture]:
    if not results:
        return []
    ordered = sorted(results, key=lambda one: (-one.kappa, one.perplexity[0]))
    labels = [f"{printable(one.arm)} ({one.kappa:g})" for one in ordered]
    values = {"validation perplexity": [one.perplexity[0] for one in ordered]}
    figure = bars(labels, values, title="Comparison", value_label="validation perplexity", log=True)
    caption = "Tickets beside what else one could do with the same model, text and tokens; the share kept in brackets."
    return [Picture("baselines", "Comparison", caption, figure)]


def _perplexity(losses: Sequence[float]) -> float:
    return mean_and_deviation(losses)[0]


def _results(points: Sequence[Point]) -> Table:
    rows = []
    for (name, split), own in _curves(points).items():
        if split == "validation":
            losses = [point.loss for point in own if point.loss is not None]
            values = [_perplexity([loss]) for loss in (losses[0], losses[-1])]
            rows.append([name, *values, own[-1].tokens])
    columns = ["model", "perplexity before", "perplexity now", "tokens"]
    return Table(columns, rows, sortable=False)


def _numbers(plan: Mapping[str, Any], clock: Mapping[str, Any], start: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {"rounds": plan.get("rounds"), "training rows": plan.get("rows")}
    if clock:
        facts["tokens trained on"] = clock["tokens"]
        facts["time"] = duration(clock["before_s"])
        facts["of it training"] = duration(clock["training_s"])
        facts["of it checkpoints"] = duration(clock.get("checkpoint_s", 0.0))
        if clock["training_s"]:
            facts["tokens a second"] = f"{clock['tokens'] / clock['training_s']:,.0f}"
        facts["compilations"] = f"{clock['compiles']} ({duration(clock['compile_s'])})"
        if "peak_bytes" in clock:
            facts["memory of a device"] = f"{clock['peak_bytes'] / 2**30:.2f} GiB"
    if start:
        facts["device"] = start[-1]["device"]
    return facts


def _tickets(tickets: Mapping[str, TicketScores]) -> Table:
    rows = []
    for kappa, entry in tickets.items():
        told = entry.perplexity
        mix = None if entry.mix is None else _perplexity([entry.mix.loss])
        repaired = None if entry.repaired is None else _perplexity([entry.repaired])
        rows.append([float(kappa), len(entry.losses), told.mean, told.sd, told.best, entry.best, mix, repaired])
    columns = ["kappa", "drawn", "mean perplexity", "sd", "best", "which", "mix of layers", "repaired"]
    return Table(columns, rows, sortable=False)


def _warnings(tickets: Mapping[str, TicketScores], full_loss: float) -> list[str]:
    lines = [
        warning(f"the best ticket of kappa {kappa}", min(entry.losses), full_loss) for kappa, entry in tickets.items()
    ]
    return [line for line in lines if line is not None]


def _baselines(results: Sequence[Result]) -> Table:
    rows = [[one.arm, one.kappa, one.perplexity[0], len(one.losses), one.parameters] for one in results]
    return Table(["what", "share kept", "perplexity", "draws", "parameters"], rows)


def _use(run_dir: Path, points: Sequence[Point]) -> str:
    measured = (name for name, split in _curves(points) if split == "validation" and name.startswith("kappa "))
    kappa = next(measured, "kappa KAPPA").replace(" ", "=")
    return (
        f"twistjax tickets {run_dir}\n"
        f"twistjax export {run_dir} {kappa} out=FOLDER\n"
        "twistjax measure FOLDER data=TEXT.txt"
    )
