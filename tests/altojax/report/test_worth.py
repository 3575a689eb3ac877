"""Whether tuning was worth it: settings meet the trials nearest to them, like shares and noise, and nothing else."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.report.curve_files import read_curves
from altojax.report.run_record import TrialRecord
from altojax.report.worth import ELSEWHERE, Worth, noise_of, worth_of
from jaxrun.store.records import Point

CURVES = Path("docs/figures/alto-curves.csv.gz")
STEPS = 100
CONFIG = {"lora_alpha": 32.0, "gradient_accumulation_steps": 1, "batch_size": 8, "seed": 0}


def trial(number, rate, rank, losses, *, status="completed", reason="", **more):
    """A trial that was evaluated at even shares of as much of its schedule as it has losses for quarters of."""
    told = {**CONFIG, "learning_rate": rate, "lora_rank": rank, **more}
    found = TrialRecord("t", f"trial-{number}", told, STEPS, 800, {}, status, reason)
    for i, loss in enumerate(losses, start=1):
        step = i * STEPS // 4
        point = Point("t", found.trial, step, 8 * step, 0, "validation", loss, None)
        found.validation.append(point)
        found.results += [point] if math.isfinite(loss) else []
        if math.isfinite(loss) and loss < found.best_loss:
            found.best = point
    return found


def judged(*trials) -> Worth | None:
    finite = [one for one in trials if math.isfinite(one.best_loss)]
    return worth_of(trials, min(finite, key=lambda one: one.best_loss, default=None))


def test_a_setting_that_was_tried_is_compared_as_it_came_out():
    found = judged(trial(0, 2e-4, 16, [3, 2.5, 2.2, 2.0]), trial(1, 1e-3, 64, [3, 2, 1.5, 1.0]))
    first, second = found.comparisons
    assert (first.trial, first.exact, first.loss, first.winner_loss, first.share) == ("trial-0", True, 2.0, 1.0, None)
    assert first.gain == 0.5 and first.verdict() == "worth it, by runs elsewhere"
    assert first.sentence().startswith(
        "learning rate 2e-4, rank 16 (its own trial, trial-0, r16 lr2e-4): 2.0000, the winner 1.0000 (-50.0 %)"
    )
    assert (second.learning_rate, second.rank, second.trial, second.exact) == (3e-4, 64, "trial-1", False)
    assert second.is_winner and second.sentence().endswith(": this trial is the best, so tuning gained nothing over it")


def test_the_nearest_is_so_in_octaves_and_is_named_as_that():
    found = judged(trial(0, 1e-4, 16, [2.0] * 4), trial(1, 3e-4, 16, [2.0] * 4), trial(2, 2e-4, 64, [1.0] * 4))
    assert found.comparisons[0].trial == "trial-1" and "the nearest trial, trial-1" in found.comparisons[0].sentence()


def test_of_trials_as_near_the_one_of_the_conventional_batch_is_taken_whatever_its_loss():
    found = judged(
        trial(0, 2e-4, 16, [1.0] * 4, batch_size=1),
        trial(1, 2e-4, 16, [3.0] * 4, batch_size=4, gradient_accumulation_steps=2),
        trial(2, 2e-4, 16, [2.0] * 4, batch_size=8),
    )
    assert [one.trial for one in found.comparisons] == ["trial-1", "trial-1"]


def test_a_setting_that_no_trial_is_near_is_not_judged():
    found = judged(trial(0, 1e-2, 16, [2.0] * 4), trial(1, 1e-2, 8, [1.0] * 4))
    assert all(
        one.far and one.gain is None and one.verdict().startswith("not known: no trial") for one in found.comparisons
    )


def test_a_trial_that_was_ended_early_meets_the_winner_at_its_own_share():
    ended = trial(0, 2e-4, 16, [3.0, 2.5], status="stopped", reason="underperforming")
    first = judged(ended, trial(1, 1e-3, 16, [4.0, 2.0, 1.0, 0.5])).comparisons[0]
    assert (first.share, first.loss, first.winner_loss, first.gain) == (0.5, 2.5, 2.0, 0.2)
    assert "at 50 % of the schedule, where it was ended (underperforming)" in first.sentence()
    assert first.verdict() == "not known: noise was not measured"
    ahead = judged(ended, trial(1, 1e-3, 16, [4.0, 1.0, 1.0, 0.5])).comparisons[0]
    assert ahead.verdict() == "the winner was ahead by then, by runs elsewhere"
    behind = judged(ended, trial(1, 1e-3, 16, [9.0, 8.0, 1.0, 0.5])).comparisons[0]
    assert behind.gain < 0 and behind.verdict() == "the winner was behind then, by runs elsewhere"


def test_schedules_of_other_lengths_are_compared_by_share():
    long = trial(1, 1e-3, 16, [4.0, 2.0, 1.0, 0.5])
    for point in long.validation:
        object.__setattr__(point, "step", 3 * point.step)
    long.total_steps = 3 * STEPS
    first = judged(trial(0, 2e-4, 16, [3.0, 2.5], status="stopped", reason="diverging"), long).comparisons[0]
    assert (first.share, first.winner_loss) == (0.5, 2.0)


def test_a_trial_without_a_finite_loss_and_one_not_evaluated_say_so():
    broken = trial(0, 2e-4, 16, [math.nan], status="stopped", reason="not finite")
    first = judged(broken, trial(1, 1e-3, 64, [1.0] * 4)).comparisons[0]
    assert first.gain is None and first.verdict() == "no finite loss (not finite)"
    waiting = judged(trial(0, 2e-4, 16, [], status="waiting"), trial(1, 1e-3, 64, [1.0] * 4)).comparisons[0]
    assert waiting.verdict() == "no finite loss yet"


def test_one_trial_or_none_that_is_finite_is_nothing_to_judge():
    assert judged(trial(0, 2e-4, 16, [1.0] * 4)) is None
    assert judged(trial(0, 2e-4, 16, [math.nan]), trial(1, 3e-4, 16, [math.inf])) is None
    assert worth_of([], None) is None


def test_without_an_axis_of_rates_all_is_the_same_trial_or_too_far():
    near = judged(*(trial(i, 2e-4, 16, [2.0 - i] * 4, lora_dropout=i / 10) for i in range(2)))
    assert [one.trial for one in near.comparisons] == ["trial-0", "trial-0"]
    assert [one.exact for one in near.comparisons] == [True, False]


def test_twins_say_what_noise_is_and_differences_within_it_are_called_that():
    twins = [trial(i, 2e-4, 16, [3.0, 2.5, 2.2, loss], seed=i) for i, loss in enumerate((2.0, 2.1, 2.05))]
    best = trial(3, 1e-3, 16, [3.0, 2.5, 2.2, 1.95])
    found = judged(*twins, best)
    noise = found.comparisons[0].noise
    assert noise.typical == pytest.approx(math.sqrt(2) * statistics.stdev((2.0, 2.1, 2.05)))
    assert noise.bound == pytest.approx(4.302653 * noise.typical) and (noise.runs, noise.configurations) == (3, 1)
    assert found.comparisons[0].verdict() == "within noise" and "3 runs of 1 configuration" in found.noise_sentence()
    assert judged(*twins, trial(3, 1e-3, 16, [1.0] * 4)).comparisons[0].verdict() == "worth it"


def test_noise_at_a_share_is_of_runs_that_came_that_far():
    twins = [
        trial(0, 2e-4, 16, [3.0, 2.0], status="stopped", reason="underperforming"),
        trial(1, 2e-4, 16, [3.2, 2.4, 2.0, 1.0], seed=1),
        trial(2, 2e-4, 16, [9.0], status="stopped", reason="diverging", seed=2),
    ]
    assert noise_of(twins, 0.5).typical == pytest.approx(math.sqrt(2) * statistics.stdev((2.0, 2.4)))
    assert noise_of(twins, None) is None and noise_of(twins, 0.75) is None


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (1.005, "within noise, by runs elsewhere"),
        (1.1, "not known: noise was not measured"),
        (1.5, "worth it, by runs"),
    ],
)
def test_without_twins_what_seeds_did_elsewhere_is_all_that_is_said(loss, said):
    found = judged(trial(0, 2e-4, 16, [loss] * 4), trial(1, 1e-3, 16, [1.0] * 4))
    assert found.comparisons[0].verdict().startswith(said)
    assert (
        found.noise_sentence().startswith("Noise was not measured") and "21.7 % (BANKING77)" in found.noise_sentence()
    )


def test_the_noise_of_runs_elsewhere_is_what_their_curves_say():
    """Two seeds of one grid of 60; what all its trials changed by together is no difference between them."""
    groups = read_curves(CURVES)
    for name, data in (("GSM8K", "gsm8k"), ("E2E-NLG", "e2e_nlg"), ("BANKING77", "banking77")):
        seeds = [groups[f"{data}-{seed}"] for seed in (0, 1)]
        best = np.array([[np.nanmin(one[trial].curve.val_loss) for trial in seeds[0]] for one in seeds])
        changes = np.log(best[1] / best[0])[np.argsort(np.log(best).sum(0))[:20]]
        size = np.quantile(np.abs(changes - np.median(changes)), 0.95)
        assert size == pytest.approx(ELSEWHERE[name], abs=5e-5)


LOSSES = st.lists(st.one_of(st.floats(0.01, 20), st.sampled_from([math.nan, math.inf])), max_size=4)
TRIALS = st.lists(
    st.tuples(
        st.sampled_from([1e-5, 1e-4, 2e-4, 3e-4, 1e-2]),
        st.sampled_from([1, 8, 16, 64]),
        LOSSES,
        st.sampled_from(["completed", "stopped", "running", "waiting"]),
        st.integers(0, 2),
        st.sampled_from([1, 8, 32]),
    ),
    max_size=8,
)


@given(TRIALS)
def test_whatever_a_run_came_to_it_is_judged_by_finite_losses_of_like_shares(rows):
    trials = [
        trial(i, rate, rank, losses, status=status, reason="r", seed=seed, batch_size=batch)
        for i, (rate, rank, losses, status, seed, batch) in enumerate(rows)
    ]
    found = judged(*trials)
    if found is None:
        assert len(trials) < 2 or all(not math.isfinite(one.best_loss) for one in trials)
        return
    by_name = {one.trial: one for one in trials}
    for one in found.comparisons:
        assert one.sentence() and "nan" not in one.sentence() and "inf" not in one.sentence()
        for name, loss in ((one.trial, one.loss), (found.winner, one.winner_loss)):
            until = math.inf if one.share is None else one.share
            seen = [p.loss for p in by_name[name].validation if p.step / STEPS <= until and math.isfinite(p.loss)]
            assert loss == min(seen, default=None)
        if one.share is None:
            assert by_name[one.trial].status == "completed" and one.loss != math.inf
        if one.share is None and one.loss is not None:
            assert one.loss >= one.winner_loss, "the winner has the lowest loss of all"
        if one.noise is not None:
            assert math.isfinite(one.noise.bound) and one.noise.bound >= one.noise.typical >= 0
    assert found.noise_sentence()


def test_an_averaged_adapter_that_is_a_result_counts_for_both():
    conventional, winner = trial(0, 2e-4, 16, [3, 2.5, 2.2, 2.0]), trial(1, 2e-3, 16, [3, 2.6, 2.3, 2.1])
    winner.best = Point("t", winner.trial, STEPS, 800, 0, "average", 1.0, None)
    winner.results.append(winner.best)
    one = judged(conventional, winner).comparisons[0]
    assert (one.loss, one.winner_loss, one.is_winner) == (2.0, 1.0, False)
