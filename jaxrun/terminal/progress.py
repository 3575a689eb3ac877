"""Shows a run while it runs: a live table on a terminal, a plain line every few seconds anywhere else."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_SPARKS = "▁▂▃▄▅▆▇█"
_STATUS_STYLES = {
    "running": "green",
    "parked": "yellow",
    "planned": "dim",
    "waiting": "dim",
    "completed": "blue",
    "stopped": "dim red",
    "failed": "bold red",
}
_ORDER = {"running": 0, "parked": 1, "waiting": 2, "planned": 3, "completed": 4}
_LINES_AROUND_TABLE = 9
_TASKS_IN_A_LINE = 4
_REFRESHES_PER_S = 4


def console_of(*, quiet: bool) -> Console:
    """Returns where a run that was started from Python shows itself: in a notebook plain lines, not a live table.

    Args:
        quiet: Show nothing.
    """
    in_notebook = (
        Console().is_jupyter
    )  # which says that it is a terminal, and is none that lines can be taken back from
    return Console(quiet=quiet, force_jupyter=False, force_terminal=False if in_notebook else None)


@dataclass(frozen=True)
class TrialRow:
    """One trial as the table shows it.

    Attributes:
        task: The task's name.
        trial: The trial's number or name.
        status: ``running``, ``parked``, ``waiting``, ``completed``, ``stopped``, …
        step: Optimizer steps done.
        total_steps: Optimizer steps of its schedule.
        loss: The latest train loss, or None.
        val_loss: The latest validation loss, or None.
        trend: Words, or the latest losses, which become a sparkline.
        note: Anything else, e.g. the reason it was stopped.
        settings: What sets it apart from the others, in a few characters.
        best_loss: The lowest validation loss so far, by which the best trial is chosen; None is the latest.
    """

    task: str
    trial: int | str
    status: str
    step: int
    total_steps: int
    loss: float | None = None
    val_loss: float | None = None
    trend: str | Sequence[float] = ""
    note: str = ""
    settings: str = ""
    best_loss: float | None = None

    @property
    def lowest(self) -> float:
        """The lowest validation loss so far, infinite where there is none."""
        known = self.val_loss if self.best_loss is None else self.best_loss
        return math.inf if known is None or math.isnan(known) else known


@dataclass(frozen=True)
class Summary:
    """The run as a whole.

    Attributes:
        tokens_per_s: Training tokens a second, or None.
        eta_s: Seconds to go, or None.
        elapsed_s: Seconds so far, or None.
        done: Trials that have ended, or whatever `unit` counts.
        total: All of them.
        compiles: Programs compiled so far; None shows nothing.
        provided: The condition of `eta_s`, such as ``if no more trials end early``.
        message: What it is doing.
        unit: What is counted, if not trials.
    """

    tokens_per_s: float | None = None
    eta_s: float | None = None
    elapsed_s: float | None = None
    done: int = 0
    total: int = 0
    compiles: int | None = 0
    provided: str = ""
    message: str = ""
    unit: str = ""


class Progress:
    """Shows rows and a summary; use it as a context manager."""

    def __init__(
        self,
        console: Console | None = None,
        *,
        plain_every_s: float = 10.0,
        race: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a display.

        Args:
            console: Where to show it; standard output by default.
            plain_every_s: Seconds between lines where the output is no terminal.
            race: Whether rows are trials, of which the best of each task is marked, or parts of one run.
            clock: Seconds that only grow.
        """
        self._console = console or Console()
        self._every_s = plain_every_s
        self._race = race
        self._clock = clock
        self._next_line_s = -math.inf
        self._offered: Callable[[], tuple[Sequence[TrialRow], Summary]] | None = None
        self._rows: Sequence[TrialRow] = ()
        self._summary = Summary(compiles=None)
        self._updated_s = -math.inf
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=_REFRESHES_PER_S, get_renderable=self._render)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            if self._offered is not None:
                self.update(*self._offered())
            self._live.stop()
            self._live = None

    def offer(self, state: Callable[[], tuple[Sequence[TrialRow], Summary]]) -> None:
        """Shows the newest state where it is time to; only then, and where a live table ends, is it asked for."""
        due_s = self._updated_s + 1 / _REFRESHES_PER_S if self._live else self._next_line_s
        if self._clock() < due_s:
            self._offered = state
            return
        self._offered = None
        self.update(*state())

    def update(self, rows: Sequence[TrialRow], summary: Summary) -> None:
        """Shows the newest state."""
        self._rows, self._summary = list(rows), summary
        now_s = self._updated_s = self._clock()
        if self._live:
            return
        if now_s >= self._next_line_s:
            self._next_line_s = now_s + self._every_s
            say(self._console, self._plain())

    def say(self, text: str) -> None:
        """Prints one line that stays."""
        if self._live:
            self._console.print(Text(f"{time_of_day()}  {text}"))
        else:
            say(self._console, text)

    def _plain(self) -> str:
        if not self._race:
            losses = [f"{row.trial} loss {_number(row.loss)}" for row in self._rows if row.loss is not None]
            return "; ".join([*_facts(self._summary), *losses])
        counts = Counter(row.status for row in self._rows)
        parts = [", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=_by_status))]
        if best := _best(self._rows):
            told = [f"{_number(row.lowest)} ({row.task}/{row.trial})" for row in best[:_TASKS_IN_A_LINE]]
            more = [f"{len(best) - len(told)} more"] if len(best) > len(told) else []
            parts.append(f"best validation loss {', '.join([*told, *more])}")
        return "; ".join(part for part in [*parts, *_facts(self._summary)] if part)

    def _render(self) -> RenderableType:
        since_s = self._clock() - self._updated_s
        summary = Text("  ".join(_facts(self._summary, since_s)), style="bold")
        if not self._rows:
            return summary
        room = max(3, self._console.height - _LINES_AROUND_TABLE)
        rows = sorted(self._rows, key=lambda row: _ORDER.get(row.status, len(_ORDER)))
        best = _best(self._rows) if self._race else []
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        told = any(row.settings for row in rows)
        columns: _Columns = (*_NAMES[: 3 if told else 2], *_COLUMNS) if self._race else (("model", "left"), *_COLUMNS)
        for name, justify in columns:
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
        for row in rows[:room]:
            table.add_row(*self._cells(row, is_best=any(row is one for one in best), settings=told))
        parts: list[RenderableType] = [Text(""), table]
        if len(rows) > room:
            hidden = Counter(row.status for row in rows[room:])
            shown = ", ".join(f"{count} {status}" for status, count in hidden.items())
            parts.append(Text(f"and {shown}", style="dim"))
        return Group(*parts, Text(""), summary)

    def _cells(self, row: TrialRow, *, is_best: bool, settings: bool) -> list[Text]:
        style = _STATUS_STYLES.get(row.status, "")
        ascii_only = self._console.options.ascii_only
        trend = row.trend if isinstance(row.trend, str) else ("" if ascii_only else sparkline(row.trend))
        return [
            *([Text(row.task)] if self._race else []),
            Text(str(row.trial)),
            *([Text(row.settings)] if self._race and settings else []),
            Text(row.status, style=style),
            Text(f"{row.step:,}/{row.total_steps:,}"),
            Text(_number(row.loss)),
            Text(_number(row.val_loss) + (" *" if is_best else ""), style="bold" if is_best else ""),
            Text(trend),
            Text(row.note, style="dim"),
        ]


_Columns = tuple[tuple[str, JustifyMethod], ...]
_NAMES: _Columns = (("task", "left"), ("trial", "right"), ("settings", "left"))
_COLUMNS: _Columns = (
    ("status", "left"),
    ("step", "right"),
    ("loss", "right"),
    ("val loss", "right"),
    ("trend", "left"),
    ("note", "left"),
)


def say(console: Console, text: str) -> None:
    """Prints one line with the time of day, which no width cuts."""
    console.print(f"{time_of_day()}  {text}", markup=False, highlight=False, soft_wrap=True)


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """Returns the last `width` values as block characters, low to high; what is not finite is a ``!``."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    half_span = high / 2 - low / 2  # halves, because the span of two finite numbers may not be finite

    def block(value: float) -> str:
        if not math.isfinite(value):
            return "!"
        share = (value / 2 - low / 2) / half_span if half_span > 0 else 0.0
        return _SPARKS[round(share * (len(_SPARKS) - 1))]

    return "".join(map(block, shown))


def duration(seconds: float) -> str:
    """Returns a length of time as people say it: ``45 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _facts(summary: Summary, since_s: float = 0.0) -> list[str]:
    facts = []
    if summary.total:
        facts.append(f"done {summary.done}/{summary.total} {summary.unit}".rstrip())
    if summary.elapsed_s is not None:
        facts.append(f"{duration(summary.elapsed_s + since_s)} so far")
    if summary.tokens_per_s is not None:
        facts.append(f"{summary.tokens_per_s:,.0f} tokens/s")
    if summary.eta_s is not None:
        facts.append(f"{duration(summary.eta_s)} to go {summary.provided}".rstrip())
    if summary.compiles is not None:
        facts.append(f"{summary.compiles} compile{'' if summary.compiles == 1 else 's'}")
    return [*facts, summary.message] if summary.message else facts


def _best(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The best row of each task that has one: losses of different tasks are not compared."""
    best: dict[str, TrialRow] = {}
    for row in rows:
        if math.isfinite(row.lowest) and (row.task not in best or row.lowest < best[row.task].lowest):
            best[row.task] = row
    return list(best.values())


def _by_status(item: tuple[str, int]) -> tuple[int, str]:
    return _ORDER.get(item[0], len(_ORDER)), item[0]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def time_of_day() -> str:
    """Returns the time as ``14:03:59``."""
    return datetime.now().strftime("%H:%M:%S")
