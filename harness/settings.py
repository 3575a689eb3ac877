"""What the ``key=value`` words after a verb may be."""

from collections.abc import Sequence
from typing import Any

from harness.config import StrictModel, apply_override, check_config


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


class RunSettings(StrictModel):
    """What a verb that starts a run takes beside the keys of its config.

    Attributes:
        overwrite: Discard the run that is in output_dir, and start anew.
    """

    overwrite: bool = False


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
    own = [word for word in words if word.partition("=")[0] in model.model_fields]
    return read_settings(model, own), [word for word in words if word not in own]
