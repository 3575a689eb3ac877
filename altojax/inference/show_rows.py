"""``altojax show``: the rows of a config or of a run as tokens, with what of them is learnt."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxrun.config.settings import ShowSettings, take_settings
from jaxrun.config.verbs import Args, Positional, Verb, later
from jaxrun.process.errors import UserError, nearest

if TYPE_CHECKING:
    from datetime import date

    from altojax.config.tune_config import BaseSpec
    from jaxlm.data.config import DataConfig
    from jaxlm.data.show_tokens import Shown


class TaskShowSettings(ShowSettings):
    """Settings of ``altojax show CONFIG`` beside the keys of the config.

    Attributes:
        split: Rows to train on, to validate on, or of the test at the end.
        task: One task; null shows all.
    """

    split: Literal["train", "validation", "test"] = "train"  # type: ignore[assignment]
    task: str | None = None


def run(args: Args) -> int:
    """Runs ``altojax show CONFIG key=value ...``."""
    from rich.console import Console

    from jaxlm.data.show_tokens import as_json, show

    settings, overrides = take_settings(TaskShowSettings, args.overrides)
    shown = [_of_task(*task, settings) for task in _tasks(args["config"], overrides, settings.task)]
    if settings.as_json:
        print(as_json(shown))
    else:
        show(shown, Console())
    return 0


def _tasks(given: str, overrides: list[str], task: str | None) -> "list[tuple[str, BaseSpec, DataConfig, date]]":
    """Returns name, base, data and day of the tasks to show."""
    from altojax.config.tune_config import TuneConfig, model_of
    from altojax.inference.model_source import find_source
    from jaxrun.config.config import load_config
    from jaxrun.store.opening import day_of
    from jaxrun.store.run_folder import JOURNAL_NAME

    if (Path(given) / JOURNAL_NAME).is_file():
        if overrides:
            key, names = overrides[0].partition("=")[0], list(TaskShowSettings.model_fields)
            hint = nearest(key, names)
            raise UserError(f"show {given}: a run's '{key}' stays as it is, expected one of {', '.join(names)}{hint}")
        source = find_source(given, adapters=[], task=task)
        assert source.task is not None and source.data is not None
        return [(source.task, source.model, source.data, source.day)]
    config = load_config(TuneConfig, given, overrides)
    names = [one.name for one in config.tasks]
    if task is not None and task not in names:
        raise UserError(f"{given}: has no task '{task}'{nearest(task, names)}, expected one of {', '.join(names)}")
    day = day_of(Path(config.output_dir))
    return [(one.name, model_of(config, one), one.data, day) for one in config.tasks if task in (None, one.name)]


def _of_task(name: str, base: "BaseSpec", data: "DataConfig", day: "date", settings: TaskShowSettings) -> "Shown":
    from jaxlm.data.chat.chat_templates import with_template
    from jaxlm.data.dataset import load_splits
    from jaxlm.data.show_tokens import choose
    from jaxlm.files.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base.model_name_or_path, trust_remote_code=base.trust_remote_code)
    tokenizer = with_template(tokenizer, data.chat_template)
    train, validation, test = load_splits(data, tokenizer, day)
    rows = {"train": train, "validation": validation, "test": test}[settings.split]
    if rows is None:
        raise UserError(f"task '{name}': has no test rows, expected data.test, test_fraction or test_samples")
    return choose(f"task {name}", rows, settings, tokenizer)


VERB = Verb(
    name="show",
    help="Show rows as tokens, with what of them is learnt, what is skipped and what is not used.",
    run=run,
    positionals=(Positional("config", "a YAML file as for tune, or the folder of a run"),),
    config=later("altojax.config.tune_config:TuneConfig"),
    settings=TaskShowSettings,
    examples=(
        "altojax show configs/quickstart.yaml",
        "altojax show configs/quickstart.yaml task=naming split=validation rows=1",
        "altojax show configs/quickstart.yaml row=12 tasks.0.data.train_on=all",
    ),
)
