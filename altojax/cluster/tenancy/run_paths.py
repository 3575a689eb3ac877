"""Paths that a run reads, by the keys that name them."""

from pathlib import Path

from altojax.config.tune_config import TuneConfig, model_of
from jaxlm.data.chat.template_setting import template_file
from jaxrun.process.errors import UserError


def reads_of(config: TuneConfig) -> dict[str, str]:
    """Returns the paths that a run reads, by the keys that name them; what may be a hub id is not among them.

    Raises:
        UserError: A path lies in a folder that this user may not enter.
    """
    reads: dict[str, str] = {}
    for number, task in enumerate(config.tasks):
        data = task.data
        read = {"train": data.train_sources, "validation": data.validation_sources, "test": data.test_sources}
        for key, sources in read.items():
            for place, source in enumerate(sources):
                reads[f"tasks.{number}.data.{key}" + (f".{place}" if len(sources) > 1 else "")] = source.path
        if template := template_file(task.data.chat_template):
            reads[f"tasks.{number}.data.chat_template"] = template
        reads[f"tasks.{number}.model" if task.model else "model"] = model_of(config, task).model_name_or_path
    return {key: path for key, path in reads.items() if _is_there(key, path)}


def _is_there(key: str, path: str) -> bool:
    try:
        return Path(path).exists() or path.startswith(("~", "/"))
    except PermissionError as error:
        expected = "a path that may be read by the user as whom the task runs"
        raise UserError(f"{key}: {path} cannot be entered, expected {expected}") from error
