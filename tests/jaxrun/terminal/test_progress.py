"""A terminal gets a live table, anything else plain lines, and neither breaks on strange numbers."""

import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxrun.terminal.progress import Progress, Summary, TrialRow, duration, sparkline

ROWS = [
    TrialRow("math", 3, "stopped", 40, 400, 2.0, 2.5, "flat", "underperforming"),
    TrialRow("math", 1, "running", 120, 400, 1.5, 1.25, [2.0, 1.5, 1.25]),
    TrialRow("code [x]", "b", "parked", 12, 400, math.nan, math.inf),
    TrialRow("code [x]", "c", "waiting", 0, 400),
]
SUMMARY = Summary(tokens_per_s=12345.6, eta_s=200.0, done=1, total=4, compiles=2, message="training [bold]")


def console(terminal: bool, height: int = 40) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=140, height=height, color_system=None), out


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_every_trial_and_the_best_one():
    screen, out = console(terminal=True)
    with Progress(screen) as progress:
        progress.update(ROWS, SUMMARY)
        progress.say("math/3 stopped [underperforming]")
    shown = plain(out.getvalue())
    last = shown[shown.rindex("task ") :]
    for words in ("running", "120/400", "1.2500 *", "code [x]", "inf", "nan", "underperforming", "█▃▁", "-"):
        assert words in last, words
    assert last.index("running") < last.index("parked") < last.index("waiting") < last.index("stopped")
    assert "done 1/4  12,346 tokens/s  3 min 20 s to go  2 compiles  training [bold]" in last
    assert "math/3 stopped [underperforming]" in shown


def test_a_short_terminal_keeps_what_runs():
    screen, out = console(terminal=True, height=13)
    with Progress(screen) as progress:
        progress.update([*ROWS[:1] * 30, *ROWS[1:]], SUMMARY)
    shown = plain(out.getvalue())
    last = shown[shown.rindex("task ") :]
    assert "120/400" in last and "and 29 stopped" in last
    assert last.count("\n") < 13


@pytest.mark.parametrize("terminal", [True, False])
def test_every_task_has_a_best_trial_of_its_own(terminal):
    screen, out = console(terminal=terminal)
    rows = [TrialRow(f"task-{n}", 1, "running", 9, 10, 1.0, loss) for n in range(6) for loss in (3.0 + n, 9.0 + n)]
    with Progress(screen) as progress:
        progress.update(rows, SUMMARY)
    shown = plain(out.getvalue())
    if terminal:
        last = shown[shown.rindex("task ") :]
        assert [f"{n}.0000 *" in last for n in range(3, 15)] == [True] * 6 + [False] * 6
    else:
        assert (
            "best validation loss 3.0000 (task-0/1), 4.0000 (task-1/1)" in shown
            and "6.0000 (task-3/1), 2 more;" in shown
        )


def test_what_is_left_is_said_with_its_condition():
    screen, out = console(terminal=False)
    with Progress(screen) as progress:
        progress.update(ROWS, Summary(eta_s=200.0, provided="if no more trials end early", compiles=2))
    assert "; 3 min 20 s to go if no more trials end early; 2 compiles" in out.getvalue()


def test_plain_lines_are_rare_and_say_what_counts():
    screen, out = console(terminal=False)
    clock = iter([0.0, 3.0, 9.9, 10.0, 12.0])
    with Progress(screen, plain_every_s=10.0, clock=lambda: next(clock)) as progress:
        for _ in range(5):
            progress.update(ROWS, SUMMARY)
        progress.say("math/3 stopped [underperforming]")
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert len(lines) == 3
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  1 running, 1 parked, 1 waiting, 1 stopped; best validation loss 1\.2500 \(math/1\);"
        r" done 1/4; 12,346 tokens/s; 3 min 20 s to go; 2 compiles; training \[bold\]",
        lines[0],
    )
    assert lines[2].endswith("  math/3 stopped [underperforming]")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_so_far_goes_on_while_nothing_is_told(terminal):
    screen, out = console(terminal)
    now = [0.0]
    with Progress(screen, clock=lambda: now[0]) as progress:
        progress.update(ROWS, Summary(elapsed_s=70.0, eta_s=200.0))
        now[0] += 30.0
    assert ("1 min 40 s so far  3 min 20 s to go" if terminal else "1 min 10 s so far; 3 min 20 s to go") in plain(
        out.getvalue()
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_the_best_trial_is_the_one_that_has_been_lowest_and_not_the_one_that_is(terminal):
    screen, out = console(terminal)
    rows = [
        TrialRow("math", 1, "running", 9, 10, 1.0, 2.0, best_loss=1.5),
        TrialRow("math", 2, "running", 9, 10, 1.0, 1.75, best_loss=1.75),
        TrialRow("math", 3, "waiting", 0, 10, best_loss=math.inf),
    ]
    with Progress(screen) as progress:
        progress.update(rows, Summary())
    shown = plain(out.getvalue())
    assert ("2.0000 *" if terminal else "best validation loss 1.5000 (math/1)") in shown and "1.7500 *" not in shown


def test_settings_stand_beside_names_where_there_are_any():
    for label, header in (("r16 lr3e-4", True), ("", False)):
        screen, out = console(terminal=True)
        with Progress(screen) as progress:
            progress.update([TrialRow("math", 1, "running", 1, 2, settings=label)], Summary())
        shown = plain(out.getvalue())
        assert ("settings" in shown) is header and label in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_parts_of_one_run_are_no_race(terminal):
    screen, out = console(terminal=terminal)
    rows = [TrialRow("", "full", "running", 2, 8, None, 4.5), TrialRow("", "kappa 0.5", "running", 2, 8, 5.25, 6.5)]
    with Progress(screen, race=False) as progress:
        progress.update(rows, Summary(done=2, total=8, unit="rounds"))
    shown = plain(out.getvalue())
    assert "done 2/8 rounds" in shown and "kappa 0.5" in shown and "5.2500" in shown
    assert not any(words in shown for words in ("trial", "task", "best", " *"))
    assert terminal or "6.5" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_known_yet_is_no_error(terminal):
    screen, out = console(terminal)
    with Progress(screen) as progress:
        progress.update([], Summary(message="loading"))
    assert "0 compiles" in out.getvalue() and "loading" in out.getvalue()


def test_a_console_that_knows_ascii_only_gets_ascii():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Progress(Console(file=out, force_terminal=True, width=100, height=12)) as progress:
        progress.update(ROWS * 5, SUMMARY)
        progress.say("plain")
    out.flush()


@settings(deadline=None)
@given(st.lists(st.floats(), max_size=30), st.integers(1, 20))
def test_sparklines_take_any_numbers(values, width):
    assert len(sparkline(values, width)) == min(len(values), width)


def test_sparklines_rise_with_their_values():
    assert sparkline([0.0, 1.0, 2.0, math.nan]) == "▁▅█!"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0.0, 5e-324]) == "▁▁"
    assert sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 4 h"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_durations_read_as_people_say_them(seconds, said):
    assert duration(seconds) == said
