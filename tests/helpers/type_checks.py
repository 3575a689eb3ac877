"""What checks the annotations of arrays at run time; tests/conftest.py says where."""

import types
import typing
import warnings
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from beartype.vale import IsInstance

# As in Python's own numeric tower, an int will do where a float is asked for.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check[T: Callable[..., Any]](checked: T) -> T:
    """Checks what a function is given and returns, or a class's methods; beartype 0.23 has no generic named tuples."""
    if isinstance(checked, types.FunctionType):
        checked.__annotations__ = {name: _plain(hint) for name, hint in checked.__annotations__.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)  # of annotations in Flax
        return _check(checked)


def _plain(hint: Any) -> Any:
    """Returns an annotation whose named tuples with a parameter are any tuple of that class."""
    whole, parts = typing.get_origin(hint), typing.get_args(hint)
    kind = whole or hint
    if isinstance(kind, type) and issubclass(kind, tuple) and getattr(kind, "__parameters__", ()):
        return typing.Annotated[object, IsInstance[kind]]
    if whole in (types.UnionType, typing.Union):
        return reduce(or_, map(_plain, parts))
    if whole in (list, tuple, dict):
        return whole[tuple(map(_plain, parts))]
    return hint
