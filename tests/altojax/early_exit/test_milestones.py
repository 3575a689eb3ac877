"""Evaluations and rungs come at the documented shares of a schedule, never before trials can be compared."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.early_exit.milestones import evaluation_steps, rung_steps, schedule, steps_between
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.rules import Rules

COMPARING = [name for name in PRESETS if name != "none"]
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "early-exit.md"


def placed(rules, drawn):
    """The evaluations and rungs of trials given as (steps, steps between evaluations, share of warm-up)."""
    rungs = rung_steps(rules, [schedule(*one) for one in drawn])
    return [
        (evaluation_steps(total, every, steps, rules.evaluations), steps)
        for (total, every, _), steps in zip(drawn, rungs, strict=True)
    ]


def rules_of(preset, steps=None):
    return Rules.model_validate({"preset": preset} if steps is None else {"preset": "topk", "top_k": {"steps": steps}})


TRIALS = st.lists(
    st.tuples(st.integers(1, 400), st.floats(0.05, 500), st.sampled_from([0.0, 0.03, 0.1, 0.34, 0.9])),
    min_size=1,
    max_size=6,
)


@given(TRIALS, st.sampled_from(COMPARING), st.none() | st.integers(1, 300))
def test_no_trial_is_compared_before_its_second_evaluation_or_in_its_warm_up(drawn, preset, steps):
    for (total, _, warmup), (evaluations, rungs) in zip(drawn, placed(rules_of(preset, steps), drawn), strict=True):
        assert list(evaluations) == sorted(set(evaluations)) and evaluations[0] >= 1 and evaluations[-1] == total
        assert list(rungs) == sorted(rungs)
        for rung in rungs:
            assert rung in evaluations
            if rung < total:
                assert sum(step <= rung for step in evaluations) >= rules_of(preset, steps).evaluations
                assert rung >= math.ceil(warmup * total - 1e-9)


@given(TRIALS, st.sampled_from(COMPARING))
def test_trials_are_compared_at_the_same_share_of_their_schedules(drawn, preset):
    found = [
        (total, rungs) for (total, _, _), (_, rungs) in zip(drawn, placed(Rules(preset=preset), drawn), strict=True)
    ]
    for index in range(len(Rules(preset=preset).rungs)):
        spans = [((r[index] - 1) / total, r[index] / total) for total, r in found if r[index] < total]
        assert max((low for low, _ in spans), default=0) < min((high for _, high in spans), default=1) + 1e-9


@given(TRIALS, st.integers(1, 300))
def test_a_rung_in_steps_is_the_same_step_for_all(drawn, steps):
    at = {rungs[0] for (total, _, _), (_, rungs) in zip(drawn, placed(rules_of("", steps), drawn), strict=True)
          if rungs[0] < total}  # fmt: skip
    assert len(at) <= 1 and min(at, default=steps) >= steps


def test_a_trial_that_ends_too_soon_to_be_compared_holds_up_nobody():
    long, short = placed(Rules(preset="cautious"), [(400, 20.0, 0.03), (1, 0.05, 0.03)])
    assert long[1] == (40, 240, 320)
    assert short == ((1,), (1, 1, 1))


@pytest.mark.parametrize(("preset", "every"), [(preset, every) for preset in COMPARING for every in (0.25, 0.4)])
def test_where_evaluations_are_far_apart_rungs_wait_for_the_second(preset, every):
    """A trial at 6.41 after 6 of 40 steps may be next to the winner at its end."""
    rules = Rules(preset=preset)
    ((evaluations, rungs),) = placed(rules, [(40, every * 40, 0.05)])
    if rules.evaluations == 1:
        assert rungs[0] == evaluations[0] == math.ceil(rules.rungs[0] * 40)
    elif preset == "paper":
        assert rungs == (2,) and evaluations[:2] == (1, 2)
    else:
        assert rungs[0] == evaluations[1] == round(2 * every * 40)


def test_the_papers_comparison_stays_at_five_percent_and_brings_an_evaluation_before_it():
    ((evaluations, rungs),) = placed(Rules(preset="paper"), [(2000, 100.0, 0.03)])
    assert rungs == (100,) and evaluations[:3] == (50, 100, 200)


def told(preset):
    """The percentages that the page names for a preset."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{preset}` |"))
    return [float(number) / 100 for number in re.findall(r"(\d+)(?=(?:, \d+| or \d+)* %)", line)]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_docs_name_the_shares_at_which_a_run_compares(preset):
    shares = told(preset)
    assert shares, "the page's line has no percentages"
    for total in (40, 200, 2048):
        ((_, rungs),) = placed(Rules(preset=preset), [(total, 0.05 * total, 0.03)])
        assert rungs == tuple(math.ceil(share * total - 1e-9) for share in shares)


def test_evaluations_are_regular_to_the_end_also_where_they_are_due_more_often_than_there_are_steps():
    assert evaluation_steps(6, 0.3, ()) == (1, 2, 3, 4, 5, 6)
    assert evaluation_steps(10, 2.5, ()) == (3, 5, 8, 10)
    assert evaluation_steps(7, 100.0, ()) == (7,)
    assert evaluation_steps(10, 5.0, (7, 9)) == (5, 7, 9, 10)


def test_samples_between_evaluations_are_a_share_below_one():
    assert steps_between(0.05, 400, 4) == pytest.approx(5.0)
    assert steps_between(50, 400, 4) == pytest.approx(12.5)
