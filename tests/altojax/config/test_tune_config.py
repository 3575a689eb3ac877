"""Search spaces: what a config says, and the configurations it comes to."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.config.search.configurations import configurations
from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig, model_of, parse_bytes
from jaxrun.config.config import check_config, dump_config, load_config
from jaxrun.process.errors import UserError

BASE = """
output_dir: runs/x
model: {model_name_or_path: base}
tasks:
- name: sql
  data: {train: train.jsonl}
"""


@pytest.fixture
def load(tmp_path: Path):
    def read(*overrides: str, text: str = BASE) -> TuneConfig:
        path = tmp_path / "tune.yaml"
        path.write_text(text)
        return load_config(TuneConfig, path, overrides)

    return read


def refused(load, *overrides: str, text: str = BASE) -> str:
    """The one line that a wrong config is answered with, at loading or when its configurations are made."""
    with pytest.raises(UserError) as error:
        config = load(*overrides, text=text)
        for task in config.tasks:
            configurations(config, task)
    assert "\n" not in str(error.value)
    return str(error.value)


def made(load, *overrides: str) -> list[TrialConfig]:
    config = load(*overrides)
    return configurations(config, config.tasks[0])


def test_no_search_is_one_trial_of_the_defaults(load):
    assert made(load) == [TrialConfig()]


def test_a_grid_is_every_combination_in_the_order_of_the_fields_however_it_is_written(load):
    """Not in the order of a set: a run that resumes in another process must find its trials where they were."""
    axes = {
        "lora_rank": [4, 8],
        "lora_dropout": [0.0, 0.1],
        "learning_rate": [1e-4, 1e-3, 1e-2],
        "weight_decay": [0.1],
        "adam_beta1": [0.8, 0.9],
        "batch_size": [2, 1],
        "train_samples": [9, 5],
    }
    backwards = ", ".join(f"{name}: {values}" for name, values in reversed(axes.items()))
    found = made(load, f"search={{{backwards}}}")
    assert [tuple(getattr(one, name) for name in axes) for one in found] == list(itertools.product(*axes.values()))


def test_fewer_trials_than_a_grid_has_are_a_fixed_choice_of_it(load):
    axes = "search={lora_rank: [1, 2, 4, 8], batch_size: [1, 2, 4, 8], trials: 5}"
    grid, few = made(load, axes, "search.trials=99"), made(load, axes)
    assert len(grid) == 16 and len(few) == 5
    places = [grid.index(one) for one in few]
    assert places == sorted(set(places))
    assert made(load, axes) == few
    assert any(made(load, axes, f"seed={seed}") != few for seed in range(1, 4))


def test_target_modules_that_are_a_list_are_one_value_and_a_list_of_lists_an_axis(load):
    assert [one.target_modules for one in made(load, "search.target_modules=[q_proj, v_proj]")] == [
        ["q_proj", "v_proj"]
    ]
    both = made(load, "search.target_modules=[all-linear, [q_proj]]")
    assert [one.target_modules for one in both] == ["all-linear", ["q_proj"]]


def test_random_draws_stay_in_their_ranges_and_vary(load):
    found = made(
        load,
        "search={method: random, trials: 60, lora_dropout: {min: 0.1, max: 0.2}, lora_rank: {min: 2, max: 5},"
        " learning_rate: {min: 1e-5, max: 1e-1, log: true}, batch_size: [1, 3], train_samples: {min: 5, max: 50}}",
    )
    assert len(found) == 60
    assert all(0.1 <= one.lora_dropout <= 0.2 for one in found)
    assert {one.lora_rank for one in found} == {2, 3, 4, 5}
    assert {one.batch_size for one in found} == {1, 3}
    assert all(1e-5 <= one.learning_rate <= 1e-1 for one in found)
    assert all(isinstance(one.train_samples, int) and 5 <= one.train_samples <= 50 for one in found)
    below = sum(one.learning_rate < 1e-3 for one in found)
    assert 15 <= below <= 45  # half of a logarithmic range lies below its geometric mean


@pytest.mark.parametrize("low_high", [(0.123456, 0.123457), (0.99994, 0.99999)])
def test_rounding_does_not_leave_the_range(load, low_high):
    low, high = low_high
    found = made(load, f"search={{method: random, trials: 20, lora_dropout: {{min: {low}, max: {high}}}}}")
    assert all(low <= one.lora_dropout <= high for one in found)


def test_the_same_config_gives_the_same_trials_and_another_seed_or_task_others(load):
    axes = "search={method: random, trials: 4, learning_rate: {min: 1e-5, max: 1e-2, log: true}}"
    first = made(load, axes)
    assert made(load, axes) == first
    assert made(load, axes, "seed=1") != first
    assert made(load, axes, "tasks.0.name=other") != first
    assert made(load, axes, "tasks.1={name: more, data: {train: x}}") == first


def test_random_values_are_pinned(load):
    """A run that resumes after an upgrade must find the trials it started."""
    found = made(
        load,
        "search={method: random, trials: 2, learning_rate: {min: 1e-5, max: 1e-2, log: true}, lora_rank: [2, 4, 8],"
        " batch_size: {min: 1, max: 64}, lora_dropout: {min: 0, max: 0.5}, weight_decay: {min: 0, max: 1}}",
    )
    drawn = [(one.lora_rank, one.lora_dropout, one.learning_rate, one.weight_decay, one.batch_size) for one in found]
    assert drawn == [(2, 0.4997, 1.877e-05, 0.2751, 1), (4, 0.4997, 0.003596, 0.4248, 26)]


def test_configurations_are_taken_as_they_are_on_top_of_the_values_given(load):
    found = made(
        load, "search={weight_decay: 0.5, lora_rank: 4, configurations: [{lora_rank: 8}, {learning_rate: 1e-3}]}"
    )
    assert [(one.lora_rank, one.learning_rate, one.weight_decay) for one in found] == [(8, 2e-4, 0.5), (4, 1e-3, 0.5)]


def test_a_task_replaces_the_runs_search_key_by_key_and_the_model_whole(load):
    config = load(
        "search={lora_rank: [4, 8], learning_rate: [1e-4, 1e-3]}",
        "tasks.0.search.lora_rank=2",
        "tasks.1={name: more, data: {train: x}, model: {model_name_or_path: other}}",
    )
    first, second = (configurations(config, task) for task in config.tasks)
    assert [(one.lora_rank, one.learning_rate) for one in first] == [(2, 1e-4), (2, 1e-3)]
    assert len(second) == 4
    assert [model_of(config, task).model_name_or_path for task in config.tasks] == ["base", "other"]


@given(st.integers(1, 256), st.floats(0.5, 512) | st.none(), st.booleans())
def test_alpha_is_twice_the_rank_unless_given_and_rslora_divides_by_its_root(rank, alpha, use_rslora):
    one = TrialConfig(lora_rank=rank, lora_alpha=alpha, use_rslora=use_rslora)
    assert one.alpha == (2 * rank if alpha is None else alpha)
    assert one.scale == pytest.approx(one.alpha / (math.sqrt(rank) if use_rslora else rank))


def test_a_dumped_config_comes_to_the_same_trials(load, tmp_path):
    config = load("search={method: random, trials: 3, lora_rank: [2, 4], learning_rate: {min: 1e-4, max: 1e-3}}")
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    again = load_config(TuneConfig, path, [])
    assert configurations(again, again.tasks[0]) == configurations(config, config.tasks[0])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.lerning_rate=1e-3", ["search.lerning_rate", "did you mean 'learning_rate'"]),
        ("search.r=8", ["did you mean 'lora_rank'"]),
        ("search.per_device_train_batch_size=8", ["did you mean 'batch_size'"]),
        ("eval_steps=10", ["did you mean 'eval_samples'"]),
        ("data.train=x", ["did you mean 'tasks.0.data'"]),
        ("search.configurations=[{lora_rnk: 8}]", ["lora_rnk", "did you mean 'lora_rank'"]),
        ("search.lora_rank=0", ["search.lora_rank", "given 0", "at least 1"]),
        ("search.lora_rank=[4, 0]", ["search.lora_rank", "given 0", "at least 1"]),
        ("search.lora_rank='8'", ["search.lora_rank", "a whole number"]),
        ("search.lora_rank=8.5", ["search.lora_rank", "given 8.5", "a whole number"]),
        ("search.lora_dropout=1.0", ["search.lora_dropout", "less than 1"]),
        ("search.learning_rate=-1.0", ["search.learning_rate", "more than 0"]),
        ("search.lr_scheduler_type=cosin", ["did you mean 'cosine'"]),
        ("search.method=rnadom", ["did you mean 'random'"]),
        ("tasks.1={name: sql, data: {train: x}}", ["two tasks are named 'sql'"]),
        ("tasks.0.name=a/b", ["tasks.0.name"]),
        ("tasks=[]", ["tasks", "at least 1"]),
        ("model=null", ["task 'sql' has no model"]),
        ("search.learning_rate={min: 1e-5, max: 1e-3}", ["task 'sql'", "search.learning_rate", "method: random"]),
        ("search.learning_rate={min: 1e-3, max: 1e-5}", ["search.learning_rate", "min <= max"]),
        ("search.learning_rate={min: 0.0, max: 1e-5, log: true}", ["min > 0 with log"]),
        ("search.method=random", ["task 'sql'", "search.trials", "missing"]),
        ("search={lora_rank: [4, 8], configurations: [{}]}", ["search.lora_rank", "an axis beside configurations"]),
        ("search={method: random, trials: 9, lora_rank: {min: 0, max: 1}}", ["search.lora_rank", "reaches 0"]),
        ("search={method: random, trials: 9, lora_dropout: {min: 0, max: 3}}", ["lora_dropout", "reaches 3"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_the_nearest_name(load, override, said):
    line = refused(load, override)
    assert all(part in line for part in said), line


def test_a_missing_key_is_named(load):
    assert "output_dir" in refused(load, text=BASE.replace("output_dir: runs/x", ""))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("40GiB", 40 * 2**30),
        ("16GB", 16 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5K", 1500),
        ("2 TiB", 2 * 2**40),
        ("123", 123),
        ("123B", 123),
        (77, 77),
        (None, None),
    ],
)
def test_bytes_are_read_with_their_units(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "given",
    [
        "",
        "GiB",
        "40 gigs",
        "-1GB",
        "1.2.3GB",
        "4PB",
        "40gib",
        "0",
        "0.0GiB",
        "0.4",
        0,
        -5,
        "9" * 400,
        "1" + "0" * 400 + "GB",
    ],
)
def test_what_is_no_number_of_bytes_is_refused_wherever_a_config_is_read(given):
    """Nothing is none of these: it would stand for all that there is."""
    tree = {"output_dir": "x", "model": {"model_name_or_path": "m"}, "tasks": [{"name": "t", "data": {"train": "d"}}]}
    with pytest.raises(UserError, match=rf"expected bytes such as 40GiB or 500MB, given .?{str(given)[:20]}"):
        check_config(TuneConfig, {**tree, "memory_budget": given}, "run.yaml")
    with pytest.raises(ValueError, match="expected bytes such as 40GiB"):
        parse_bytes(given)


def test_plain_data_is_checked_as_a_file_is():
    with pytest.raises(UserError, match="did you mean 'tasks'"):
        check_config(TuneConfig, {"output_dir": "x", "task": []}, "a dictionary")


def test_every_whole_number_may_be_drawn(load):
    ranges = ", ".join(
        f"{name}: {{min: 1, max: 9}}"
        for name in ("lora_rank", "batch_size", "gradient_accumulation_steps", "train_samples", "seed")
    )
    (one,) = made(load, f"search={{method: random, trials: 1, {ranges}}}")
    drawn = (one.lora_rank, one.batch_size, one.gradient_accumulation_steps, one.train_samples, one.seed)
    assert all(isinstance(value, int) and 1 <= value <= 9 for value in drawn)


# --- no configuration twice


def different(found: list[TrialConfig]) -> int:
    return len({(one.lora_rank, one.alpha, one.learning_rate, str(one.target_modules)) for one in found})


def told(load, *overrides: str) -> tuple[list[TrialConfig], list[str]]:
    config, lines = load(*overrides), []
    return configurations(config, config.tasks[0], tell=lines.append), lines


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(0, 99))
def test_random_draws_none_twice_and_all_there_are_where_there_are_too_few(ranks, rates, trials, seed):
    space = {"lora_rank": list(range(1, ranks + 1)), "learning_rate": [10.0**-k for k in range(1, rates + 1)]}
    search = {"method": "random", "trials": trials, **space}
    given_ = {"output_dir": "x", "seed": seed, "model": {"model_name_or_path": "base"}, "search": search}
    config, lines = check_config(TuneConfig, {**given_, "tasks": [{"name": "sql", "data": {"train": "x"}}]}, "x"), []
    found = configurations(config, config.tasks[0], tell=lines.append)
    assert different(found) == len(found) == min(trials, ranks * rates)
    assert bool(lines) is (trials > ranks * rates)


def test_too_small_a_space_to_draw_from_is_one_line(load):
    found, lines = told(load, "search={method: random, trials: 24, lora_rank: [4, 8], batch_size: [1, 2, 4]}")
    assert len(found) == 6
    assert lines == ["search.trials: 24 asked for, 6 tried: there are no more different configurations"]
    assert len(told(load, "search={method: random, trials: 9, learning_rate: {min: 1e-3, max: 1e-3}}")[0]) == 1


@pytest.mark.parametrize(
    ("search", "count", "of"),
    [
        ("{lora_rank: [8, 8, 4]}", 2, 3),
        ("{configurations: [{lora_rank: 8}, {lora_rank: 4}, {lora_rank: 8, lora_alpha: 16.0}]}", 2, 3),
        ("{configurations: [{}, {seed: 0}]}", 1, 2),
        ("{target_modules: [[q_proj, v_proj], [v_proj, q_proj], [q_proj]]}", 2, 3),
        ("{configurations: [{train_samples: 9}, {train_samples: 9, num_train_epochs: 2.0}]}", 1, 2),
        ("{learning_rate: [1e-3, 0.001], lora_rank: [4, 8], trials: 3}", 2, 4),
    ],
)
def test_what_is_given_twice_is_one_trial_and_said(load, search, count, of):
    found, lines = told(load, f"search={search}")
    assert len(found) == count
    (line,) = lines
    assert f"{count} of {of} configurations are different trials" in line and "trained once" in line


def test_all_different_says_nothing(load):
    assert told(load, "search={lora_rank: [4, 8]}")[1] == []
    assert told(load, "search={lora_rank: [4, 8], trials: 9}")[1] == [], "trials is the most to take of a grid"


@pytest.mark.parametrize("key", ["learning_rate", "lora_alpha", "weight_decay", "adam_epsilon", "num_train_epochs"])
@pytest.mark.parametrize("value", [".inf", "[1, .inf]", ".nan"])
def test_a_trial_of_no_finite_number_is_refused(load, key, value):
    assert f"search.{key}" in refused(load, f"search.{key}={value}")


@pytest.mark.parametrize("key", ["seed", "search.seed"])
def test_a_seed_is_one_that_no_other_stands_for(load, key):
    assert made(load, f"{key}={2**32 - 1}")
    assert f"{key}: given {2**32}, expected less than {2**32}" in refused(load, f"{key}={2**32}")
