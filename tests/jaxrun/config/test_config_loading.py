"""A wrong config is one line that says where and what; a right one means what YAML 1.2 says."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrun.config.config import StrictModel, config_diff, dump_config, load_config
from jaxrun.config.strict_yaml import dump_yaml, parse_yaml
from jaxrun.process.errors import UserError


class Kind(StrEnum):
    TEXT = "text"
    CHAT = "chat"


class Search(StrictModel):
    foreign_names: ClassVar[dict[str, str]] = {"r": "rank", "lr": "learning_rate"}
    learning_rate: float | list[float] = 1e-4
    rank: int | tuple[int, ...] = 16
    schedule: Literal["cosine", "linear"] = "cosine"
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    use_rslora: bool = False

    @pydantic.field_validator("weight_decay")
    @classmethod
    def light(cls, value: float) -> float:
        if value > 10:
            raise ValueError("a decay above 10 removes everything")
        return value


class Task(StrictModel):
    name: str
    kind: Kind = Kind.TEXT
    train: Path | None = None
    search: Search | None = None


class Run(StrictModel):
    seed: int = 0
    limit: float = math.inf
    search: Search = Search()
    tasks: tuple[Task, ...] = ()


@pytest.fixture
def load(tmp_path):
    def load(text: str, *overrides: str) -> Run:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(Run, path, overrides)

    return load


@pytest.fixture
def complaint(load, tmp_path):
    def complaint(text: str, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(str(tmp_path / "run.yaml"), "run.yaml")

    return complaint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E-3", 5e-3),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("1.e2", 100.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("+3", 3),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1__0", "1__0"),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = parse_yaml(f"x: {text}", "it")["x"]
    assert type(read) is type(value)
    assert read == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "it:3: duplicate key 'a', already given on line 1"),
        ("x:\n  - {b: 1, b: 2}", "it:2: duplicate key 'b'"),
        ("a: 1\n3: 4", "it:2: key 3 is not a string"),
        ("a: &a [*a]", "it:1: an alias that contains itself"),
        ("a: 1\nb: [1, 2\nc: 3", "it:3: not valid YAML"),
        ("a: 1\n\tb: 2", "it:2: not valid YAML"),
        ("a: \x01", "it:1: not valid YAML: a control character"),
        ("a: *gone", "it:1: not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "it:1: not valid YAML"),
        ("[" * 5000, "it: nested too deeply"),
        ("a: " + "9" * 5000, "it:1: not valid YAML"),
        ("a: 0x" + "f" * 5000, "it:1: not valid YAML: a number of 5,002 digits"),
        ("a: 1\n---\nb: 2", "it:2: not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line_with_its_number(text, said):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "it")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_aliases_are_welcome_until_they_explode():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "it") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n"
    with pytest.raises(UserError, match="aliases expand to more than"):
        parse_yaml(bomb, "it")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=["Cs"]))
    | st.sampled_from(["1e-4", "yes", "no", "~", "0o7", "1_0", "<<", "=", "2020-01-01", "null", ".nan", "- a", "a: b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn1.~", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(PLAIN)
@example("\x85")
@example("a\u2028 b\u2029")
def test_what_is_dumped_reads_back_the_same(data):
    text = dump_yaml({"x": data})
    read = parse_yaml(text, "it")["x"]
    assert read == data
    assert config_diff(read, data) == []


def test_a_right_config_loads_and_dumps(load, tmp_path):
    run = load(
        "search: {learning_rate: [1e-4, 1], rank: [8, 16]}\ntasks: [{name: no, kind: chat, train: data/a.jsonl}]"
    )
    assert run.search.learning_rate == [1e-4, 1.0]
    assert run.search.rank == (8, 16)
    assert run.tasks[0] == Task(name="no", kind=Kind.CHAT, train=Path("data/a.jsonl"))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(run))
    assert load_config(Run, again, []) == run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "search: {lerning_rate: [1.5]}",
            "run.yaml: search.lerning_rate: unknown key, given [1.5], expected one of learning_rate, rank, schedule,"
            " target_modules, weight_decay, use_rslora (did you mean 'learning_rate'?)",
        ),
        (
            "tasks: [{name: a, search: {r: 3}}]",
            "run.yaml: tasks.0.search.r: unknown key, given 3, expected one of learning_rate, rank, schedule,"
            " target_modules, weight_decay, use_rslora (did you mean 'rank'?)",
        ),
        (
            "rank: 3",
            "run.yaml: rank: unknown key, given 3, expected one of seed, limit, search, tasks"
            " (did you mean 'search.rank'?)",
        ),
        (
            "tasks: [{nam: a}]",
            'run.yaml: tasks.0.nam: unknown key, given "a", expected one of name, kind, train, search'
            " (did you mean 'name'?); also wrong: tasks.0.name",
        ),
        ("tasks: [{}]", "run.yaml: tasks.0.name: missing, expected a value"),
        ("seed: '16'", 'run.yaml: seed: given "16", expected a whole number'),
        ("seed: true", "run.yaml: seed: given true, expected a whole number"),
        ("seed: 1.5", "run.yaml: seed: given 1.5, expected a whole number"),
        ("seed:", "run.yaml: seed: given null, expected a whole number"),
        ("limit: '1'", 'run.yaml: limit: given "1", expected a number'),
        ("search: {use_rslora: yes}", 'run.yaml: search.use_rslora: given "yes", expected true or false'),
        ("search: {learning_rate: fast}", 'run.yaml: search.learning_rate: given "fast", expected a number or a list'),
        ("search: {learning_rate: [1, fast]}", 'run.yaml: search.learning_rate.1: given "fast", expected a number'),
        (
            "search: {target_modules: 3}",
            "run.yaml: search.target_modules: given 3, expected one of 'all-linear' or a list",
        ),
        (
            "search: {schedule: cosin}",
            "run.yaml: search.schedule: given \"cosin\", expected one of 'cosine' or 'linear' (did you mean 'cosine'?)",
        ),
        (
            "tasks: [{name: a, kind: chart}]",
            "run.yaml: tasks.0.kind: given \"chart\", expected one of 'text' or 'chat' (did you mean 'chat'?)",
        ),
        ("search: {weight_decay: -1}", "run.yaml: search.weight_decay: given -1, expected at least 0.0"),
        ("search: {weight_decay: 11}", "run.yaml: search.weight_decay: a decay above 10 removes everything, given 11"),
        ("tasks: {a: 1}", 'run.yaml: tasks: given {"a": 1}, expected a list'),
        (
            "search: 3",
            "run.yaml: search: given 3, expected a section of keys: learning_rate, rank, schedule, target_modules,"
            " weight_decay, use_rslora",
        ),
        ("- 1", "run.yaml: given a list, expected keys with values at the top level"),
    ],
)
def test_every_mistake_is_one_line_that_says_what_to_write(complaint, text, said):
    assert complaint(text) == said


def test_long_lists_of_keys_are_cut_short(tmp_path):
    wide = pydantic.create_model("Wide", __base__=StrictModel, **{f"key_{n}": (int, 0) for n in range(40)})
    (tmp_path / "wide.yaml").write_text(f"kye_3: {list(range(100))}")
    with pytest.raises(UserError) as caught:
        load_config(wide, tmp_path / "wide.yaml", [])
    assert "(28 more) (did you mean 'key_3'?)" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_overrides_set_dotted_keys(load):
    run = load(
        "tasks: [{name: a, train: x}]",
        "search.rank=[8, 16]",
        "tasks.0.name=no",
        "tasks.0.train=",
        "tasks.1.name=b",
        "tasks.0.search.weight_decay=1e-2",
        "seed=7",
    )
    assert run.search.rank == (8, 16)
    assert [task.name for task in run.tasks] == ["no", "b"]
    assert run.tasks[0].train is None
    assert run.tasks[0].search == Search(weight_decay=0.01)
    assert run.seed == 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "override 'seed': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("a..b=3", "override 'a..b=3': expected key=value"),
        ("seed.x=3", "override 'seed.x=3': seed is a plain value, expected a section or a list"),
        ("tasks.7.name=x", "override 'tasks.7.name=x': given tasks.7, expected an index from 0 to 1"),
        ("tasks.one.name=x", "override 'tasks.one.name=x': given tasks.one, expected an index from 0 to 1"),
        (f"tasks.{'9' * 5000}.name=x", "override 'tasks.999"),
        (f"search.{'a.' * 5000}b=x", "override 'search.a.a"),
        ("seed=[1", "override 'seed=[1':1: not valid YAML"),
        ("search.rnk=3", "command line: search.rnk: unknown key, given 3"),
        (
            "sead=3",
            "command line: sead: unknown key, given 3, expected one of seed, limit, search, tasks (did you mean",
        ),
        ("seed=x", 'command line: seed: given "x", expected a whole number'),
        ("data.train=x", 'command line: data: unknown key, given {"train": "x"}, expected one of'),
    ],
)
def test_a_bad_override_is_blamed_on_the_command_line(complaint, override, said):
    assert complaint("seed: 1\ntasks: [{name: a}]", override).startswith(said)


class Window(StrictModel):
    low: int = 0
    high: int = 9
    name: str = "w"

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Window":
        if self.low > self.high:
            raise ValueError("low is above high, expected it below")
        return self


class Windows(StrictModel):
    first: Window = Window()
    more: tuple[Window, ...] = ()


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("first: {low: 5}", ["first.high=3"], "command line: first: low is above high"),
        ("first: {low: 5}", {"first.high": 3}, "overrides: first: low is above high"),
        ("first: {low: 5, high: 3}", ["first.name=x"], "run.yaml: first: low is above high"),
        ("first: {low: 5, high: 3}", ["first.high=4"], "run.yaml: first: low is above high"),
        ("more: [{low: 5}]", ["more.0.high=3"], "command line: more.0: low is above high"),
        ("first: {low: x}", ["first.low=y"], 'command line: first.low: given "y"'),
        ("first: {low: x}", ["first.high=3"], 'run.yaml: first.low: given "x"'),
        ("frist: {low: 1}", ["frist.high=3"], "run.yaml: frist: unknown key"),
        ('first: {name: "\\0"}', ["first.high=3"], r'run.yaml: first.name: given "\u0000"'),
    ],
)
def test_what_is_wrong_of_several_keys_together_is_blamed_on_who_made_it_so(
    tmp_path, monkeypatch, text, overrides, said
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(Windows, "run.yaml", overrides)
    assert str(caught.value).startswith(said)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "quickstart.yaml").write_bytes(b"a: \xff")
    for path, said in [
        (tmp_path / "quikstart.yaml", "no such config file (did you mean 'quickstart.yaml'?)"),
        (tmp_path / "gone" / "x.yaml", "no such config file"),
        (tmp_path, "is a folder, expected a YAML file"),
        (tmp_path / "quickstart.yaml", "not UTF-8 text (byte 3), expected a YAML file"),
    ]:
        with pytest.raises(UserError) as caught:
            load_config(Run, path, [])
        assert str(caught.value) == f"{path}: {said}"


def test_config_diff_names_what_changed():
    old = {"a": 1, "b": {"c": [1, 2], "d": 1}, "e": math.nan, "f": [1]}
    new = {"a": 1.0, "b": {"c": [1, 3], "g": 1}, "e": math.nan, "f": [1, 2]}
    assert config_diff(old, new) == ["a", "b.c.1", "b.d", "b.g", "f"]
    assert config_diff(old, old) == []


def test_sections_are_frozen_and_strict_in_python_too():
    with pytest.raises(pydantic.ValidationError):
        Search(rank="16")
    with pytest.raises(pydantic.ValidationError):
        Search(unknown=1)
    with pytest.raises(pydantic.ValidationError):
        Search().rank = 3
