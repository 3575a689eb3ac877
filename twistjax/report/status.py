"""``twistjax status``: where a run stands, as a table, while it is live or after."""

from jaxrun.config.verbs import Args
from jaxrun.store.journal import Journal
from jaxrun.store.opening import refuse_run_of_another
from jaxrun.store.run_folder import state_of_run
from jaxrun.terminal.printable import printable_data
from jaxrun.terminal.progress import duration
from jaxrun.terminal.tables import print_table


def run(args: Args) -> int:
    """Runs ``twistjax status RUN``."""
    from jaxlm.models.perplexity import perplexity, shown

    with Journal.read(args["run"]) as journal:
        refuse_run_of_another(journal, "tasks", "twistjax train")
        points, evaluations = journal.points(), journal.events("evaluation")
        state = state_of_run(finished=bool(journal.events("finish")), live=journal.live, verb="train")
        checkpoint = journal.last_checkpoint()
        with journal.interpreted():
            clock, plan = (dict(printable_data(journal.get(key, {}))) for key in ("clock", "plan"))
            lines = [f"round {checkpoint.tick if checkpoint else 0} of {plan.get('rounds', '?')} saved"]
            if evaluations:
                lines[0] += f", looked at after round {evaluations[-1].tick}"
            if clock:
                pace = f", {clock['tokens'] / clock['training_s']:,.0f} tokens/s" if clock["training_s"] else ""
                saved = f"{duration(clock['before_s'])} at the last checkpoint"
                lines.append(f"{saved}{pace}, {clock['compiles']} compilations")
    curves: dict[str, list[float]] = {}
    for point in points:
        if point.split == "validation" and point.loss is not None:
            curves.setdefault(str(point.trial), []).append(point.loss)
    rows = [
        (name, *(shown(perplexity(loss)) for loss in (losses[0], min(losses), losses[-1])))
        for name, losses in sorted(curves.items())
    ]
    print_table(("model", "perplexity before", "lowest", "now"), rows, right=range(1, 4))
    print("", *lines, state, sep="\n")
    return 0
