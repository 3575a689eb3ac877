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
        clock, plan = (printable_data(journal.get(key, {})) for key in ("clock", "plan"))
        state = state_of_run(finished=bool(journal.events("finish")), live=journal.live, verb="train")
        checkpoint = journal.last_checkpoint()
        curves: dict[str, list[float]] = {}
        for point in points:
            if point.split == "validation" and point.loss is not None:
                curves.setdefault(str(point.trial), []).append(point.loss)
        rows = [
            (name, *(shown(perplexity(loss)) for loss in (losses[0], min(losses), losses[-1])))
            for name, losses in sorted(curves.items())
        ]
        print_table(("model", "perplexity before", "lowest", "now"), rows, right=range(1, 4))
        print()
        done = 0 if checkpoint is None else checkpoint.tick
        looked = f", looked at after round {evaluations[-1].tick}" if evaluations else ""
        print(f"round {done} of {plan.get('rounds', '?')} saved{looked}")
        if clock:
            pace = f", {clock['tokens'] / clock['training_s']:,.0f} tokens/s" if clock["training_s"] else ""
            print(f"{duration(clock['before_s'])} at the last checkpoint{pace}, {clock['compiles']} compilations")
        print(state)
    return 0
