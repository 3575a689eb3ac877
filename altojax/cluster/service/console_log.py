"""The orchestrator's console log: one line for each event and each decision."""

from rich.console import Console
from rich.text import Text

from altojax.cluster.scheduling.records import (
    Ended,
    Failed,
    GiveUp,
    Halted,
    Hold,
    Merge,
    NodeChanged,
    PlanMade,
    Record,
    Start,
    Stop,
    Submitted,
    UserAsked,
)
from altojax.cluster.scheduling.resources.nodes import Gpus
from jaxrun.terminal.progress import duration, time_of_day
from jaxrun.terminal.sizes import counted

_STYLES = {"ended": "blue", "failed": "red", "give_up": "bold red", "start": "green", "plan": "dim"}


class ConsoleLog:
    """Prints records as they are committed."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def tell(self, record: Record) -> None:
        """Prints a record, unless it is of no interest to people."""
        if line := line_of(record):
            self.say(line, _STYLES.get(record.kind, ""))

    def say(self, line: str, style: str = "") -> None:
        """Prints one line with the time."""
        self._console.print(Text(f"{time_of_day()}  {line}", style=style), soft_wrap=True)


def line_of(record: Record) -> str | None:
    """Returns what a record says, in one line; None where it is of no interest to people."""
    match record:
        case Submitted():
            counts = list(record.job.speeds)
            gpus = f"{', '.join(map(str, counts))} {'GPU' if counts == [1] else 'GPUs'}"
            return f"{record.job.name} submitted by {record.job.tenant}, for {gpus}"
        case UserAsked():
            return f"{record.job}: asked to {record.wish}"
        case Ended():
            return f"{record.job} ended"
        case Halted():
            return f"{record.job} has saved and stopped"
        case Failed():
            return f"{record.job} failed (attempt {record.attempt}): {record.reason}"
        case NodeChanged():
            return (
                f"node {record.node}: {counted(record.gpus, 'GPU')}" if record.gpus else f"node {record.node} is gone"
            )
        case Start():
            took = duration(record.until_s - record.at_s)
            attempt = f", attempt {record.attempt}" if record.attempt > 1 else ""
            return f"{record.job} starts on {where(record.gpus)}{attempt}, for about {took}: {record.why}"
        case Stop():
            return f"{record.job} is asked to save and stop: {record.why}"
        case GiveUp():
            return f"{record.job} is given up: {record.reason}"
        case Merge():
            return f"{', '.join(record.jobs)} become {record.into.name}: {record.why}"
        case Hold():
            return f"{where(record.gpus)} are held for {record.job}: {record.why}"
        case PlanMade():
            gap = gap_words(record.makespan_s, record.bound_s)
            return f"plan ({record.rule}) for {len(record.order)} that wait: all ends in {gap}"
        case _:
            return None


def where(gpus: Gpus) -> str:
    """Returns GPUs as people write them: ``node-a:0,1``."""
    return " ".join(f"{node}:{','.join(map(str, indices))}" for node, indices in gpus.items())


def gap_words(makespan_s: float, bound_s: float) -> str:
    """Returns a makespan and how far it is above what no schedule can beat."""
    gap = f", {100 * (makespan_s / bound_s - 1):.1f} % above the energy bound" if bound_s > 0 else ""
    return f"{duration(makespan_s)}{gap}"
