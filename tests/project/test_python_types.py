"""The Python API says in a line what was given, where it is of another type."""

import pytest

import altojax
import twistjax
from jaxlm.completion import texts
from jaxrun.process.errors import UserError


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: altojax.open_run(None), "run: given None, expected a path"),
        (lambda: altojax.open_run(""), "run: given '', expected a path"),
        (lambda: altojax.load(3), "model: given 3, expected a path"),
        (lambda: altojax.load("m", adapter=["a"]), "adapter: given ['a'], expected a path"),
        (lambda: altojax.load("m", trial=1), "load: trial: given 1, expected a string"),
        (
            lambda: altojax.load("m", task=b"x"),
            "load: task: given a bytes object, expected a value that YAML has, or a path",
        ),
        (lambda: twistjax.open_run(3), "run: given 3, expected a path"),
        (lambda: twistjax.load(None), "model: given None, expected a path"),
        (lambda: texts(None), "prompts: given None, expected texts"),
        (lambda: texts({"a": 1}), "prompts: given {'a': 1}, expected texts"),
    ],
)
def test_what_is_of_another_type_is_one_line(call, said):
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == said
