"""What a search that learns begins with and proposes: within its space, the same for the same facts, near the best."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.config.search import prior
from altojax.config.search.configurations import configurations, first_of
from altojax.config.search.proposer import Tried, good_ones, proposals, tpe
from altojax.config.search.space import Draw, drawn_value
from altojax.config.tune_config import TuneConfig
from jaxrun.config.config import check_config
from jaxrun.process.errors import UserError

pytest.importorskip("optuna")

AXES = {
    "learning_rate": Draw(min=1e-5, max=1e-2, log=True),
    "lora_rank": Draw(min=3, max=130, log=True),
    "batch_size": [8, 1, 4],
    "target_modules": ["all-linear", ["q_proj", "v_proj"]],
    "use_rslora": [True, False],
    "weight_decay": Draw(min=0.02, max=0.02),
    "train_samples": [64],
}


def tried(count: int, seed: int) -> list[Tried]:
    random = np.random.default_rng(seed)
    drawn = [{name: drawn_value(name, one, random) for name, one in AXES.items()} for _ in range(count)]
    found = sorted(drawn, key=lambda one: abs(math.log(one["learning_rate"] / 1e-3)) + (one["batch_size"] > 1))
    return [Tried(one, place / count) for place, one in enumerate(found)]


def config(search: dict, seed: int = 0) -> TuneConfig:
    task = {"name": "t", "data": {"train": "x.jsonl"}}
    return check_config(
        TuneConfig,
        {"output_dir": "o", "model": {"model_name_or_path": "m"}, "search": search, "tasks": [task], "seed": seed},
        "c",
    )


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_proposals_are_in_the_search_space_and_the_same_for_the_same_facts(count, seed):
    known = [*tried(count, seed), Tried(tried(1, seed + 1)[0].values, None)]
    found = list(proposals(AXES, known, tpe(seed)))
    assert found == list(proposals(AXES, known, tpe(seed)))
    for one in found:
        assert one.keys() == AXES.keys()
        for name, choices in AXES.items():
            if isinstance(choices, Draw):
                assert choices.min <= one[name] <= choices.max
            else:
                assert one[name] in choices
        assert isinstance(one["lora_rank"], int)


def test_proposals_are_nearer_to_what_did_best_than_draws_are():
    far = [abs(math.log(one["learning_rate"] / 1e-3)) for one in (t.values for t in tried(200, 5))]
    found = [one for seed in range(4) for one in proposals(AXES, tried(30, seed), tpe(seed))]
    near = [abs(math.log(one["learning_rate"] / 1e-3)) for one in found]
    assert np.median(near) < 0.7 * np.median(far)
    assert np.mean([one["batch_size"] == 1 for one in found]) > 0.45


def test_it_is_said_around_which_tenth_was_proposed():
    some = {f"trial-{i:02d}": Tried({}, None if i == 0 else 1 - i / 30) for i in range(30)}
    assert good_ones(some) == ["trial-29", "trial-28", "trial-27"]
    assert good_ones({"a": Tried({}, 0.5), "b": Tried({}, None)}) == ["a"]


@pytest.mark.parametrize(
    ("parameters", "rate"), [(1e8, 1e-3), (1e9, 1e-3), (math.sqrt(3) * 1e9, 10**-3.2614), (3e9, 3e-4), (8e9, 3e-4)]
)
def test_the_rate_that_is_known_to_work_falls_with_the_size_of_the_base(parameters, rate):
    assert prior.usual_rate(parameters) == pytest.approx(rate, rel=1e-4)


def test_a_search_begins_where_lora_is_known_to_work():
    space = {
        "method": "refine",
        "trials": 600,
        "learning_rate": {"min": 1e-6, "max": 1e-1, "log": True},
        "lora_rank": [1, 8, 32, 256],
        "batch_size": [1, 2, 16, 64],
    }
    one = config(space)
    first = configurations(one, one.tasks[0], parameters=8e9)[: first_of(600)]
    assert first_of(600) == 200
    rates = np.log([trial.learning_rate for trial in first])
    assert np.median(rates) == pytest.approx(math.log(3e-4), abs=0.4) and 0.8 < np.std(rates) < 1.4
    assert np.mean([trial.lora_rank >= 32 for trial in first]) > 0.7
    assert np.mean([trial.batch_size <= 2 for trial in first]) > 0.8
    assert np.median(
        np.log([t.learning_rate for t in configurations(one, one.tasks[0], parameters=1e8)[:200]])
    ) == pytest.approx(math.log(1e-3), abs=0.4)


def test_a_space_of_few_configurations_is_tried_whole_and_none_twice():
    told: list[str] = []
    one = config({"method": "refine", "trials": 20, "lora_rank": [1, 64], "learning_rate": [1e-9, 1e-3, 1.0]})
    found = configurations(one, one.tasks[0], tell=told.append)
    assert len({repr(trial) for trial in found}) == len(found) == 6
    assert told == ["search.trials: 20 asked for, 6 tried: there are no more different configurations"]


def test_what_a_search_that_learns_needs_is_one_line(monkeypatch):
    one = config({"method": "refine", "lora_rank": [1, 2]})
    with pytest.raises(
        UserError, match=r"search.trials: missing, expected how many configurations method refine draws"
    ):
        configurations(one, one.tasks[0])
    one = config({"method": "refine", "trials": 2, "configurations": [{}, {"lora_rank": 2}]})
    with pytest.raises(UserError, match=r"search.method: refine beside configurations"):
        configurations(one, one.tasks[0])
    monkeypatch.setitem(sys.modules, "optuna", None)
    one = config({"method": "refine", "trials": 2, "lora_rank": [1, 2]})
    with pytest.raises(
        UserError, match=r"needs optuna, which is not installed; expected `pip install 'altojax\[search\]'`"
    ):
        configurations(one, one.tasks[0])
