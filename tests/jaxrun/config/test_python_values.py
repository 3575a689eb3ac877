"""A config of Python values is the config that YAML of the same content is."""

from pathlib import Path

import numpy as np
import pytest

from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.python_values import plain
from jaxrun.process.errors import UserError


class Search(StrictModel):
    rank: int | list[int] = 8
    rate: float | list[float] = 1e-4


class Task(StrictModel):
    name: str
    train: str | None = None
    search: Search = Search()


class Run(StrictModel):
    seed: int = 0
    tasks: tuple[Task, ...] = ()


def test_paths_tuples_ranges_numpy_numbers_and_sections_are_taken_where_yaml_takes_them():
    given = {
        "seed": np.int64(3),
        "tasks": (
            {"name": "a", "train": Path("rows.jsonl"), "search": {"rank": range(8, 33, 8), "rate": np.array([0.5, 1])}},
            Task(name="b", search=Search(rank=4)),
        ),
    }
    same = "seed: 3\ntasks: [{name: a, train: rows.jsonl, search: {rank: [8, 16, 24, 32], rate: [0.5, 1.0]}}, {B}]"
    text = same.replace("{B}", "{name: b, search: {rank: 4}}")
    assert load_config(Run, given) == load_config(Run, write(text))


def write(text: str) -> Path:
    path = Path("run.yaml")
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_values_by_dotted_keys_replace_what_is_given_and_leave_it_as_it_was():
    given = {"tasks": [{"name": "a"}]}
    overrides = {"seed": 7, "tasks.0.search.rank": (1, 2), "tasks.1.name": "b"}
    run = load_config(Run, given, overrides)
    assert (run.seed, [one.name for one in run.tasks], run.tasks[0].search.rank) == (7, ["a", "b"], [1, 2])
    assert given == {"tasks": [{"name": "a"}]}
    assert load_config(Run, run, {"seed": 8}).tasks == run.tasks
    assert load_config(Run, write("seed: 1"), {"seed": 9}).seed == 9


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        ({"seed": {1, 2}}, {}, "config.seed: given a set object, expected a value that YAML has, or a path"),
        ({"tasks": [{"name": b"a"}]}, {}, "config.tasks.0.name: given a bytes object, expected a value that YAML has"),
        ({"tasks": [{1: "a"}]}, {}, "config.tasks.0: given the key 1, expected keys that are strings"),
        ([], {}, "config: given a list, expected a path, or keys with values"),
        ({"sead": 1}, {}, "config: sead: unknown key, given 1, expected one of seed, tasks (did you mean 'seed'?)"),
        ({}, {"seed": "x"}, 'overrides: seed: given "x", expected a whole number'),
        ({"seed": 1}, {"seed.x": 1}, "override seed.x: seed is a plain value, expected a section or a list"),
        ({}, {"seed": object}, "seed: given a type object, expected a value that YAML has, or a path"),
    ],
)
def test_what_a_config_cannot_be_is_one_line(given, overrides, said):
    with pytest.raises(UserError) as caught:
        load_config(Run, given, overrides)
    assert str(caught.value).startswith(said)


def test_true_stays_true_and_no_number():
    assert plain({"a": np.bool_(True), "b": True, "c": None}, "x") == {"a": True, "b": True, "c": None}
