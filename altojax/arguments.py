"""What the ``key=value`` words after a verb may be."""

import inspect
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from harness.config import StrictModel, apply_override, check_config


class UseSettings(StrictModel):
    """Which base and adapters to use; every verb that runs a model has these.

    Attributes:
        adapter: Adapter folders, a list or with commas between them; null takes a run's own.
        task: Which task of a run; may be left out where there is one.
        trial: Which trial of a run; null is the best.
        dtype: Of base and activations; null is the run's, or bfloat16 on an accelerator and float32 on a CPU.
    """

    adapter: str | list[str] | None = None
    task: str | None = None
    trial: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] | None = None

    @property
    def adapters(self) -> list[str] | None:
        """The adapter folders."""
        if isinstance(self.adapter, str):
            return [name.strip() for name in self.adapter.split(",") if name.strip()]
        return self.adapter


def told(model: type[StrictModel]) -> dict[str, str]:
    """Returns what the docstrings of a settings model say of each key, with its default; its own keys come first."""
    found: dict[str, str] = {}
    for kind in model.__mro__:
        if not issubclass(kind, StrictModel) or kind is StrictModel:
            continue
        listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", f"\n{listed}"):
            name, _, text = " ".join(entry.replace("``", "").split()).partition(": ")
            if name in model.model_fields:
                default = model.model_fields[name].default
                found[name] = text if default in (None, "") else f"{text} ({json.dumps(default)})"
    return found


def read_settings[Model: StrictModel](model: type[Model], words: Sequence[str], *, text: Sequence[str] = ()) -> Model:
    """Checks the ``key=value`` words of a verb.

    Args:
        model: What they may be.
        words: As typed.
        text: Keys whose value is taken letter by letter; every other is YAML.

    Raises:
        UserError: An unknown key or a wrong value.
    """
    tree: dict[str, Any] = {}
    keys = []
    for word in words:
        key, _, value = word.partition("=")
        if key in text:
            tree[key] = value
            keys.append(key)
        else:
            keys.append(apply_override(tree, word))
    return check_config(model, tree, "command line", keys)
