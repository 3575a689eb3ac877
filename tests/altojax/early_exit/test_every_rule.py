"""Every rule, also those of docs/extend/rule.md, decides the same in a run, a replay, the simulator and the queue."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from played_runs import ends, made_up, play, with_rungs, write
from rich.console import Console

from altojax.cli import main
from altojax.cluster.service.progress_monitor import read_standing
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from altojax.cluster.task_estimates.remaining_samples import TrialStanding, expected_samples
from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig
from altojax.device.batch import Stream
from altojax.early_exit.alarms.not_finite import NotFinite
from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Alarm, Comparison
from altojax.early_exit.rules import REGISTERED, Rules, register
from altojax.report.recorded_curves import read_run
from altojax.run.prepare import prepare
from altojax.run.trial import Trial
from altojax.run.tuner import Tuner
from jaxrun.config.config import check_config, dump_config, what_was_set
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "extend" / "rule.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
[COMMAND] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
DOCUMENTED = re.findall(r"^register\((\w+)\)$", "\n".join(CODE), re.M)
EVERY = [*REGISTERED, *(name.lower() for name in DOCUMENTED)]
NONE = {"preset": "none"}
RUN = {
    "output_dir": "x",
    "model": {"model_name_or_path": "base"},
    "tasks": [{"name": "task", "data": {"train": "x.jsonl"}}],
}


@pytest.fixture
def registered():
    """Whatever a test registers is forgotten after it."""
    before, fields = dict(REGISTERED), dict(Rules.model_fields)
    yield register
    for known, kept in ((REGISTERED, before), (Rules.model_fields, fields)):
        known.clear()
        known.update(kept)
    Rules.model_rebuild(force=True)


@pytest.fixture
def documented(registered):
    """The rules of the page."""
    exec(compile("\n".join(CODE), "docs/extend/rule.md", "exec"), {"__name__": "page"})
    assert [rule.__name__ for rule in list(REGISTERED.values())[-len(DOCUMENTED) :]] == DOCUMENTED


def of(name: str) -> Rules:
    return Rules.model_validate({**NONE, name: True})


def noisy(trials, random):
    """Losses on which every alarm is raised for some trial: they fall, rise, blow up, drift apart, break."""
    found = {}
    for trial in trials:
        n = len(trial.eval_steps)
        train = random.uniform(1, 3) + np.linspace(0, random.choice([-0.5, 0.5, 4.0]), n) + random.normal(0, 0.02, n)
        val = train + random.choice([0.05, 0.6]) + random.normal(0, 0.02, n)
        val[int(random.uniform(0.3, 3) * n) :] = np.nan
        found[trial.name] = np.stack([train, val])
    return found


@pytest.mark.parametrize("name", EVERY)
def test_a_rule_decides_the_same_in_a_run_a_replay_and_the_simulator(name, documented, tmp_path):
    rules, none, ended = of(name), Rules.model_validate(NONE), 0
    for seed in range(4):
        random = np.random.default_rng(seed)
        trials = made_up(rules, random, 10)
        losses = noisy(trials, random)
        progress, events = play(rules, trials, losses)
        found = {trial.name: one.step for trial, one in zip(trials, progress, strict=True)}
        own = read_run(write(tmp_path / f"own-{seed}", rules, trials, progress, events))
        assert own.rules == rules
        assert ends(own.rules, own.groups["task"]) == found

        full = write(tmp_path / f"full-{seed}", none, trials, *play(none, trials, losses))
        assert ends(rules, read_run(full).groups["task"]) == found

        task = {"name": "one", "speeds": {"1": 1.0}, "samples": 1000}
        replayed = {"curves": full.name, "group": "task", "early_exit": what_was_set(rules)}
        workload = check_config(Workload, {"cluster": 1, "tasks": [{**task, "replayed": replayed}]}, "x")
        [simulated] = arrivals(workload, tmp_path)
        all_steps = sum(trial.stream.total_steps for trial in trials)
        assert simulated.samples == pytest.approx(1000 * sum(found.values()) / all_steps)
        ended += sum(one.status == "stopped" for one in progress)
    assert ended, "the rule ended nobody"


def alike(rules, count=12):
    """Trials of one length whose losses fall alike, the first lowest: no alarm is raised, and no two are equal."""
    one = TrialConfig(batch_size=2, warmup_ratio=0.03)
    trials = with_rungs(
        rules,
        [Trial(i, "task", f"t-{i:02}", one, {}, Stream([], 0, 400, 2, 1), 0, 32, every_steps=10) for i in range(count)],
    )
    falling = {trial.name: 1 + trial.index - 0.001 * np.arange(len(trial.eval_steps)) for trial in trials}
    return trials, {name: np.stack([losses, losses]) for name, losses in falling.items()}


@pytest.mark.parametrize("name", EVERY)
def test_the_queue_forecasts_what_the_rule_keeps(name, documented, tmp_path):
    rules = of(name)
    trials, losses = alike(rules)
    expected = expected_samples({"task": [TrialStanding(400, trial.schedule) for trial in trials]}, rules)
    progress, events = play(rules, trials, losses)
    trained = sum(trial.stream.samples_after(one.step) for trial, one in zip(trials, progress, strict=True))
    if name == "median":  # which ends trials also after its first rung, as the forecast does not count on
        assert trained < expected < 0.6 * 12 * 400
    else:
        assert expected == pytest.approx(trained)
    assert (trained < 12 * 400) == issubclass(REGISTERED[name], Comparison)
    standing = read_standing(write(tmp_path / "run", rules, trials, progress, events), rules)
    assert standing is not None
    assert (standing.left, standing.samples, standing.done) == (0.0, trained, 12)


@pytest.mark.parametrize("name", EVERY)
def test_a_comparison_keeps_somebody_and_no_more_than_there_are(name, documented):
    rule = REGISTERED[name](enabled=True)
    assert isinstance(rule, Alarm) != isinstance(rule, Comparison)
    if isinstance(rule, Comparison):
        kept = {n: [rule.keeps(index, n) for index in range(len(rule.rungs))] for n in (1, 2, 7, 100)}
        assert all(min(one, default=0) >= 1 and max(one) <= living for living, one in kept.items())


def test_a_registered_rule_is_a_section_of_every_config_and_of_what_a_run_writes(documented):
    config = check_config(TuneConfig, {**RUN, "early_exit": {**NONE, "rising": {"times": 3}}}, "x")
    assert [(rule.name, rule.times) for rule in config.early_exit.alarms] == [("rising", 3)]
    assert yaml.safe_load(dump_config(config))["early_exit"] == {**NONE, "rising": {"times": 3}}
    assert check_config(TuneConfig, yaml.safe_load(dump_config(config)), "x") == config
    assert not check_config(TuneConfig, RUN, "x").early_exit.rising.enabled
    for wrong, said in (
        ({"rising": {"times": 0}}, "early_exit.rising.times: given 0"),
        ({"rising": {"tims": 2}}, "rising.tims: unknown key, given 2, expected one of enabled, times"),
        ({"risng": True}, "did you mean 'rising'?"),
        ({"worst": True, "median": True}, "median and worst all compare trials"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            check_config(TuneConfig, {**RUN, "early_exit": {**NONE, **wrong}}, "x")


def test_a_rule_that_is_registered_again_replaces_itself_and_no_other(documented):
    def again(name: str, times: int) -> type[Alarm]:
        body = {"__module__": "page", "__annotations__": {"times": int}, "times": times, "name": name}
        return type("Rising", (REGISTERED["rising"],), body)

    register(again("rising", 7))
    assert Rules().rising.times == 7
    for taken in ("stalled", "preset", "model_dump"):
        with pytest.raises(ValueError, match=f"Rising: its name '{taken}'"):
            register(again("falling", 2), again(taken, 2))
    assert "falling" not in REGISTERED and Rules() == Rules(preset="default")


def test_rules_that_were_made_before_one_was_registered_decide_as_before(registered):
    rules, curve = of("stalled"), Curve(np.arange(1, 8) / 7, np.ones(7), np.ones(7))
    body = {"__module__": "page", "name": "later", "raised": lambda *_: np.ones(7, bool), "detail": lambda *_: "now"}
    registered(type("Later", (Alarm,), {**body, "reason": "later"}))
    assert [rule.name for rule in rules.on] == ["stalled"]
    assert rules.after_evaluation(curve.first(3)) is None and rules.after_evaluation(curve).reason == "stalled"
    assert of("later").after_evaluation(curve).reason == "later"


def test_a_value_that_a_rule_needs_is_read_and_its_lack_is_one_line(registered, tmp_path, capsys):
    class Restless(NotFinite):
        """Ends a trial whose gradients are long."""

        name = "restless"
        needs = property(lambda self: ("grad_norm",))

        def raised(self, curve: Curve, train_average: np.ndarray) -> np.ndarray:
            return curve.more["grad_norm"] > 1

    registered(Restless)
    rules = of("restless")
    replayed = {"curves": "curves.csv", "early_exit": what_was_set(rules)}
    tree = {"cluster": 1, "tasks": [{"name": "x", "speeds": {"1": 1.0}, "samples": 100, "replayed": replayed}]}
    curves = ["group,trial,step,max_steps,train_loss,val_loss,grad_norm", "g,a,1,2,1,1,3", "g,a,2,2,1,1,0.5"]
    (tmp_path / "curves.csv").write_text("\n".join(curves))
    assert arrivals(check_config(Workload, tree, "x"), tmp_path)[0].samples == pytest.approx(50)
    (tmp_path / "curves.csv").write_text("\n".join(line.rpartition(",")[0] for line in curves))
    (tmp_path / "workload.yaml").write_text(yaml.safe_dump(tree))
    assert main(["simulate", str(tmp_path / "workload.yaml")]) == 2
    assert "early_exit.restless needs 'grad_norm' of every trial" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"early_exit\.restless needs 'grad_norm', expected rules of the losses"):
        prepare(check_config(TuneConfig, {**RUN, "early_exit": what_was_set(rules)}, "x"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": 0.5}, "given kept and replayed, expected one of them"),
        ({"replayed": {"curves": "curves.csv", "group": "gg"}}, "no 'gg' in"),
        ({"replayed": {"curves": "curve.csv"}}, "no such file (did you mean 'curves.csv'?)"),
        ({"replayed": {"curves": "curves.csv", "early_exit": "papr"}}, "did you mean 'paper'?"),
    ],
)
def test_what_is_wrong_with_replayed_curves_is_one_line(change, said, tmp_path, capsys):
    (tmp_path / "curves.csv").write_text("group,trial,step,max_steps,train_loss,val_loss\ng,a,1,1,1,1\n")
    task = {"name": "x", "speeds": {"1": 1.0}, "samples": 100, "replayed": {"curves": "curves.csv"}, **change}
    (tmp_path / "workload.yaml").write_text(yaml.safe_dump({"cluster": 1, "tasks": [task]}))
    assert main(["simulate", str(tmp_path / "workload.yaml")]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("unreported", "few_shapes")
def test_a_real_run_ends_by_the_rule_of_the_page_and_is_replayed_to_the_same_ends(documented, tmp_path):
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "sums.jsonl"), "validation_samples": 6, "max_length": 32}
    search = {"learning_rate": [1e-3, 3.0, 10.0], "batch_size": 2, "train_samples": 40, "lora_rank": 4}
    config = {
        "output_dir": str(tmp_path / "run"), "slots": 3, "keep_adapters": "best", "eval_samples": 0.04,
        "model": {"model_name_or_path": str(ROOT / "configs" / "tiny"), "random_init": True, "dtype": "float32"},
        "search": {**search, "lr_scheduler_type": "constant", "target_modules": ["q_proj"]},
        "early_exit": {**NONE, "rising": {"times": 1}}, "tasks": [{"name": "sums", "data": data}],
    }  # fmt: skip
    assert Tuner(check_config(TuneConfig, config, "x"), console=Console(quiet=True)).run() == 0
    with Journal.read(tmp_path / "run") as journal:
        reached = {event.trial: event.payload["step"] for event in journal.events("end")}
        reasons = {event.payload["reason"] for event in journal.events("end")}
    assert "rising" in reasons
    run = read_run(tmp_path / "run")
    assert ends(run.rules, run.groups["sums"]) == reached


@pytest.mark.slow
def test_a_command_that_imports_another_package_knows_its_rules(tmp_path, forks):
    (tmp_path / "house_rules.py").write_text("\n".join(CODE))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**RUN, "early_exit": {**NONE, "rising": {"tims": 3}}}))
    python, flag, program, *words = shlex.split(COMMAND)
    assert (python, flag) == ("python", "-c")
    [done] = forks.begin(program, [words], [tmp_path], {}).ended()
    assert done.code == 2 and done.err.count("\n") == 1
    assert "early_exit.rising.tims: unknown key" in done.err and "did you mean 'times'?" in done.err
