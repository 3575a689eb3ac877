"""Settings of a verb, given as ``key=value`` words."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from jaxrun.config.config import StrictModel, apply_override, check_config
from jaxrun.config.config_keys import field_names


def read_settings[Model: StrictModel](model: type[Model], words: Sequence[str], *, text: Sequence[str] = ()) -> Model:
    """Checks the ``key=value`` words of a verb.

    Args:
        model: What they may be.
        words: As typed.
        text: Keys whose value is taken letter by letter, quotes included.

    Raises:
        UserError: An unknown key or a wrong value.
    """
    tree: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in text:
            tree[key] = value
        else:
            apply_override(model, tree, word)
    return check_config(model, tree, "command line")


class RunSettings(StrictModel):
    """Settings of a verb that starts a run, beside the keys of its config.

    Attributes:
        overwrite: Discard the run that is in output_dir, and start anew.
    """

    overwrite: bool = False


class ShowSettings(StrictModel):
    """Settings of a verb that shows rows.

    Attributes:
        split: Rows to train on, or to validate on.
        rows: How many, from the first.
        row: One row instead, by its line in its file, as ``12`` or ``support.jsonl:12``.
        as_json: Print JSON.
    """

    split: Literal["train", "validation"] = "train"
    rows: Annotated[int, pydantic.Field(ge=1)] = 3
    row: Annotated[int, pydantic.Field(ge=1)] | str | None = None
    as_json: bool = pydantic.Field(False, alias="json")

    foreign_names: ClassVar[dict[str, str]] = {"n": "rows", "samples": "rows", "line": "row", "index": "row"}


def take_settings[Model: StrictModel](model: type[Model], words: Sequence[str]) -> tuple[Model, list[str]]:
    """Takes the settings of a verb out of the words after a config.

    Args:
        model: The verb's own settings.
        words: As typed.

    Returns:
        The settings, and the other words, which are keys of the config.

    Raises:
        UserError: A wrong value.
    """
    names = field_names(model)
    own = [word for word in words if word.partition("=")[0] in names]
    return read_settings(model, own), [word for word in words if word not in own]
