"""Trials and evaluations are counted before any of them is made: no number in a config fills the memory."""

import json
import resource
from pathlib import Path

import pytest

from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from altojax.config.search.configurations import configurations
from altojax.config.tune_config import MOST_TRIALS, TuneConfig
from altojax.run.prepare import prepare
from jaxrun.config.config import check_config
from jaxrun.process.errors import UserError
from twistjax.config import TwistConfig
from twistjax.training.rounds_plan import plan_of

TINY = Path(__file__).parents[3] / "configs" / "tiny"
THOUSANDTHS = [number / 1000 for number in range(1000)]
BILLION = dict.fromkeys(("lora_dropout", "warmup_ratio", "min_lr_ratio"), THOUSANDTHS)
NAMES = [["q_proj"], ["k_proj"], ["v_proj"]] * 1000


@pytest.fixture(autouse=True)
def little_memory():
    """Whatever is built after all fails at once and does not take the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def tuned(search, *own, **run):
    tasks = [{"name": f"task{number}", "data": {"train": "x"}, "search": one} for number, one in enumerate(own or [{}])]
    base = {"model_name_or_path": str(TINY), "random_init": True}
    return check_config(TuneConfig, {"output_dir": "x", "model": base, "search": search, "tasks": tasks, **run}, "tune")


@pytest.mark.parametrize(
    ("search", "own", "said"),
    [
        (BILLION, [{}], "1,000,000,000 trials"),
        ({**BILLION, "trials": 10**9}, [{}], "1,000,000,000 trials"),
        ({"method": "random", "trials": 10**9, "lora_rank": {"min": 1, "max": 9}}, [{}], "1,000,000,000 trials"),
        ({"target_modules": NAMES, "lora_dropout": THOUSANDTHS}, [{}], "3,000,000 trials"),
        (dict.fromkeys((*BILLION, "adam_beta1", "adam_beta2"), THOUSANDTHS), [{}], "some 10^15 trials"),
        ({"lora_dropout": THOUSANDTHS}, [{}, {"warmup_ratio": THOUSANDTHS}], "1,001,000 trials, 1,000,000 of them by"),
        ({}, [{"configurations": [{"lora_rank": 1}] * (MOST_TRIALS + 1)}], "100,001 trials"),
    ],
)
def test_more_trials_than_a_run_may_have_are_refused_with_their_number(search, own, said):
    with pytest.raises(UserError, match="expected at most 100,000") as error:
        tuned(search, *own)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_more_tasks_than_a_run_may_have_are_refused_at_once():
    with pytest.raises(UserError, match=r"tasks: .*, expected at most 1000 items"):
        tuned({}, *([{}] * 10_000))


def test_trials_chosen_of_a_grid_too_large_to_build_are_different_and_the_same_each_time():
    config = tuned({**BILLION, "trials": 8})
    found = configurations(config, config.tasks[0])
    assert len({(one.lora_dropout, one.warmup_ratio, one.min_lr_ratio) for one in found}) == 8
    assert found == configurations(config, config.tasks[0])
    assert [one.lora_dropout for one in found] == sorted(one.lora_dropout for one in found), "in the grid's order"
    other = tuned({**BILLION, "trials": 8}, seed=1)
    assert found != configurations(other, other.tasks[0])
    alike = configurations(config, config.tasks[0], alike=lambda one: one.min_lr_ratio < 0.5)
    assert len(alike) == 2, "of those alike only one is chosen"


@pytest.mark.parametrize(
    ("search", "run", "said"),
    [
        ({"train_samples": 10**12}, {"eval_samples": 1.0}, "250,000,000,000 evaluations, expected at most 100,000"),
        (
            {"train_samples": 10**12, "gradient_accumulation_steps": 10**9},
            {},
            "an optimizer step of 4,000,000,000 samples, expected at most 1,048,576",
        ),
    ],
)
def test_a_schedule_too_long_to_list_is_refused(tmp_path, search, run, said):
    rows = tmp_path / "sums.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) + "\n" for n in range(8)))
    config = tuned(search, **run)
    task = config.tasks[0].model_copy(update={"data": config.tasks[0].data.model_copy(update={"train": str(rows)})})
    with pytest.raises(UserError) as error:
        prepare(config.model_copy(update={"tasks": [task]}))
    assert said in str(error.value)


def test_rungs_without_end_are_refused():
    with pytest.raises(UserError, match="rungs, expected at most 1,000"):
        tuned({}, early_exit={"halving": {"first": 1e-6, "eta": 1.0000001}})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"cluster": "1000000000x8", "random": {"count": 1}}, "at most 10,000 nodes"),
        ({"cluster": f"{'9' * 4000}x8", "random": {"count": 1}}, "at most 10,000 nodes"),
        ({"cluster": 10**9, "random": {"count": 1}}, "10000"),
        ({"cluster": 1, "random": {"count": 10**9}}, "1000000"),
        ({"cluster": 1, "tasks": [{"name": "a", "samples": 1.0, "speeds": {"1": 1.0}, "count": 10**9}]}, "1000000"),
    ],
)
def test_a_simulation_without_bounds_is_refused(keys, said):
    with pytest.raises(UserError) as error:
        check_config(Workload, keys, "workload")
    assert said in str(error.value).replace("1,000,000", "1000000")


def test_tasks_of_a_simulation_are_counted_together():
    one = {"samples": 1.0, "speeds": {"1": 1.0}, "count": 10**6}
    tasks = [{"name": "a", **one, "count": 1}, {"name": "b", **one}]
    with pytest.raises(UserError, match="more than 1,000,000"):
        arrivals(check_config(Workload, {"cluster": 1, "tasks": tasks}, "workload"), Path())


@pytest.mark.parametrize(
    ("section", "keys", "said"),
    [
        ("subnetworks", {"workers": 10**9}, "rows in a round, expected at most 16,777,216"),
        ("training", {"local_steps": 10**9}, "rows in a round, expected at most 16,777,216"),
        ("training", {"train_samples": 10**12}, "local steps of a worker, expected at most 10,000,000"),
    ],
)
def test_rounds_too_long_to_list_are_refused(section, keys, said):
    given = {"output_dir": "x", "model": {"model_name_or_path": "x"}, "data": {"train": "x"}, section: keys}
    with pytest.raises(UserError, match=said):
        plan_of(check_config(TwistConfig, given, "twist"), 100)


@pytest.mark.parametrize(("section", "key"), [("evaluation", "tickets"), ("baselines", "draws")])
def test_tickets_without_number_are_refused(section, key):
    given = {"output_dir": "x", "model": {"model_name_or_path": "x"}, "data": {"train": "x"}, section: {key: 10**9}}
    with pytest.raises(UserError, match=f"{section}.{key}"):
        check_config(TwistConfig, given, "twist")
