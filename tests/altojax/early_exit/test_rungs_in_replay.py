"""A replay has the rungs of the run that was recorded, and ends the same trials at the same steps."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_runs import ends, play, with_rungs, write

from altojax.config.search.space import TrialConfig
from altojax.device.batch import Stream
from altojax.early_exit.curve import AVERAGE
from altojax.early_exit.milestones import evaluation_steps, recorded_schedule, rung_steps, schedule
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import WARMUP, read_curves
from altojax.report.recorded_curves import read_run
from altojax.run.trial import Trial
from jaxrun.process.errors import UserError

COMPARING = [name for name in PRESETS if name != "none"]
TRIALS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 4, 8]),  # batch size
        st.integers(8, 200),  # samples
        st.sampled_from([0.05, 0.3, 0.7, 1.0]),  # share of the schedule between evaluations
        st.sampled_from([0.0, 0.03, 0.12, 0.5]),  # of it in warm-up
    ),
    min_size=2,
    max_size=9,
)


def by_average(preset: str) -> Rules:
    name = Rules(preset=preset).comparison.name
    return Rules.model_validate({"preset": preset, name: {"rank_by": "average"}})


def made(rules: Rules, drawn) -> list[Trial]:
    trials = []
    for index, (batch, samples, every, warmup) in enumerate(drawn):
        one = TrialConfig(batch_size=batch, warmup_ratio=warmup)
        stream = Stream([], 0, samples, batch, 1)
        steps = every * samples / batch
        trials.append(Trial(index, "task", f"trial-{index}", one, {}, stream, 0, 32, every_steps=steps))
    return with_rungs(rules, trials)


def made_losses(trials, seed: int, kinds: int):
    """Losses that fall, bounce, and for one trial in four break."""
    random, found = np.random.default_rng(seed), {}
    for trial in trials:
        n = len(trial.eval_steps)
        losses = (
            random.uniform(1, 3) - random.uniform(0, 0.5) * np.linspace(0, 1, n) + random.normal(0, 0.2, (kinds, n))
        )
        if random.random() < 0.25:
            losses[:, int(random.uniform(0, n)) :] = np.nan
        found[trial.name] = losses
    return found


@settings(max_examples=60, deadline=None)
@given(TRIALS, st.sampled_from(COMPARING), st.booleans(), st.integers(0, 10**6))
def test_a_runs_journal_replayed_gives_its_own_ends_at_its_own_steps(tmp_path_factory, drawn, preset, averaged, seed):
    rules = by_average(preset) if averaged else Rules(preset=preset).for_curves(set())
    trials = made(rules, drawn)
    losses = made_losses(trials, seed, 3 if averaged else 2)
    progress, events = play(rules, trials, losses)
    recorded = read_run(write(tmp_path_factory.mktemp("run"), rules, trials, progress, events))
    group = recorded.groups["task"]
    assert recorded.rules == rules
    assert rung_steps(rules, [group[trial.name].schedule for trial in trials]) == [trial.rungs for trial in trials]
    assert ends(rules, group) == {trial.name: one.step for trial, one in zip(trials, progress, strict=True)}


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0.05, 500), st.sampled_from([0.0, 0.03, 0.34])), max_size=6),
    st.sampled_from(COMPARING),
    st.booleans(),
)
def test_rungs_can_be_told_by_the_evaluations_of_a_full_grid_as_by_its_config(drawn, preset, averaged):
    """Curve files say no more than after which steps a trial was evaluated, and its warm-up."""
    rules = by_average(preset) if averaged else Rules(preset=preset)
    seen = [(total, evaluation_steps(total, every, ()), warmup) for total, every, warmup in drawn]
    assert rung_steps(rules, [recorded_schedule(*one) for one in seen]) == rung_steps(
        rules, [schedule(*one) for one in drawn]
    )


def test_an_averages_rung_waits_for_no_second_evaluation_but_for_the_warm_up():
    rules = Rules.model_validate({"preset": "none", "underperforming": {"at": [0.05], "rank_by": "average"}})
    for every, warmup, rung in ((0.05, 0.0, 50), (0.3, 0.03, 50), (0.3, 0.1, 100)):
        (found,) = rung_steps(rules, [schedule(1000, every * 1000, warmup)])
        assert found == (rung,)
        assert evaluation_steps(1000, every * 1000, found, rules.evaluations)[0] == rung, "and none is added before it"


def test_a_file_that_says_its_warm_up_is_compared_after_it(tmp_path):
    header = "group,trial,step,max_steps,train_loss,val_loss,warmup_ratio\n"
    rows = [f"g,{name},{step},10,1,{loss},0.3" for name, loss in (("a", 1.0), ("b", 2.0)) for step in range(1, 11)]
    path = tmp_path / "curves.csv"
    path.write_text(header + "\n".join(rows))
    rules = Rules.model_validate({"preset": "none", "underperforming": {"at": [0.2], "keep": [0.5]}})
    (group,) = read_curves(path).values()
    assert asdict(group["a"].schedule)["warmup"] == 0.3
    assert ends(rules, group) == {"a": 10, "b": 3}
    path.write_text(header + "\n".join(rows).replace("0.3", "1.5"))
    with pytest.raises(UserError, match=f"{WARMUP} is 1.5, expected one number from 0 to below 1"):
        read_curves(path)


def test_a_trial_of_a_live_run_that_has_not_come_to_its_rung_is_not_compared_by_what_it_lacks(tmp_path):
    rules = by_average("topk")
    trials = made(rules, [(1, 100, 0.05, 0.0)] * 12)
    losses = {trial.name: np.full((3, len(trial.eval_steps)), float(trial.index)) for trial in trials}
    progress, events = play(rules, trials, losses)
    live = progress[0]
    live.phase, live.step = "running", trials[0].eval_steps[0]
    for values in (live.fraction, live.train_loss, live.val_loss, live.average_losses):
        del values[1:]
    group = read_run(write(tmp_path / "run", rules, trials, progress, events)).groups["task"]
    assert math.isnan(group["trial-0"].curve.more[AVERAGE][0])
    found = ends(rules, group)
    assert list(found.values()) == [live.step, *[100] * 7, *[20] * 4]
