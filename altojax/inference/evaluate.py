"""``altojax evaluate``: loss and exact match of a base and of adapters on it, or of pairs what they prefer."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic
from rich.console import Console

from altojax.inference.settings import UseSettings
from jaxlm.data.config import Columns, Format
from jaxlm.models.sampling import Sampling
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.terminal.progress import Progress, Summary
from jaxrun.terminal.tables import print_table
from jaxrun.untrusted.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from altojax.inference.loaded_model import LoadedModel
    from altojax.inference.model_source import ModelSource
    from jaxlm.data.config import DataConfig
    from jaxlm.data.dataset import Dataset
    from jaxlm.data.encoding import Prompt
    from jaxlm.data.examples import Example

_DATA_KEYS = ("format", "columns", "roles", "max_length", "train_on", "chat_template", "separator")


class EvaluateSettings(UseSettings):
    """Settings of ``altojax evaluate MODEL``.

    Attributes:
        data: File, folder or hub id of the rows; null takes the validation rows of a run's task.
        split: Split of a hub data set.
        max_samples: Use at most this many rows, a fixed random choice.
        format: What the columns mean; this and the next six are as in the ``data`` of a run, and default to the run's.
        columns: What the data calls its columns, such as ``columns.prompt=question``.
        roles: What the data calls who speaks, such as ``roles.agent=assistant``.
        max_length: Longest row in tokens; longer ones are cut.
        train_on: Count completions only, or every token.
        chat_template: Write conversations by the tokenizer's chat template, or by that of a file or a name.
        separator: Between prompt and completion without a template.
        exact_match: Also let every model answer every prompt greedily, and count the answers that are the reference.
        answer_pattern: Compare the last match of this regular expression (its first group, if any) in place of the
            whole text, such as ``#### (.*)``.
        max_new_tokens: Longest answer; null is as long as the longest reference.
        batch_size: Rows at once.
        out: Write the results here as JSON.
        predictions: Write every answer here as JSONL.
    """

    data: str | None = None
    split: str = "test"
    max_samples: Annotated[int, pydantic.Field(ge=1)] | None = None
    format: Format | None = None
    columns: Columns | None = None
    roles: dict[str, str] | None = None
    max_length: Annotated[int, pydantic.Field(ge=2)] | None = None
    train_on: Literal["completion", "all"] | None = None
    chat_template: bool | str | None = None
    separator: str | None = None
    exact_match: bool = False
    answer_pattern: str | None = None
    max_new_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 16
    out: str | None = None
    predictions: str | None = None

    foreign_names: ClassVar[dict[str, str]] = {
        "eval_file": "data",
        "dataset": "data",
        "peft": "adapter",
        "limit": "max_samples",
        "torch_dtype": "dtype",
    }


def run(args: Args) -> int:
    """Runs ``altojax evaluate MODEL key=value ...``."""
    from altojax.inference.loaded_model import load_adapted
    from altojax.inference.model_source import find_source
    from jaxlm.data.documents import Chat
    from jaxlm.data.encoding import Encoder

    settings = read_settings(EvaluateSettings, args.overrides, text=("answer_pattern", "separator"))
    source = find_source(args["model"], **settings.sought)
    data = _data_config(settings, source, args["model"])
    loaded = load_adapted(source, longest=data.max_length, mesh=settings.mesh)
    rows = _rows(settings, data, loaded)
    for line in rows.summary():
        print(line)
    chats = any(isinstance(row.document, Chat) for row in rows.examples)
    if chats and Encoder.of(data, loaded.tokenizer, source.day).asks_for_day:
        print(f"the chat template writes the date, which is {source.day}")
    results = (
        _of_pairs(settings, loaded, rows)
        if rows.examples[0].rejected
        else _of_rows(settings, data, loaded, rows, source.day)
    )
    columns = list(results[0])
    print()
    print_table(columns, [[_shown(result[column]) for column in columns] for result in results], right=range(1, 5))
    if settings.out:
        report = {"model": source.model.model_name_or_path, "rows": len(rows), "targets": rows.target_tokens}
        write_atomic(settings.out, json.dumps({**report, "results": results}, indent=2) + "\n")
    return 0


def _of_rows(
    settings: EvaluateSettings, data: "DataConfig", loaded: "LoadedModel", rows: "Dataset", day: "date"
) -> list[dict[str, Any]]:
    """Returns the loss and perplexity of every model, and its exact match where that is asked for."""
    from jaxlm.data.examples import check_samples
    from jaxlm.models.perplexity import perplexity

    check_samples(rows.examples, pairs=False)
    prompts = _prompts(settings, data, loaded, rows, day) if settings.exact_match else []
    with Progress(Console(stderr=True), race=False) as progress:
        tell = partial(_tell, progress, "losses", "rows", len(rows) * loaded.adapted.slots)
        losses = loaded.losses(rows, settings.batch_size, done=tell)
    results: list[dict[str, Any]] = [
        {"name": name, "loss": loss, "perplexity": perplexity(loss)}
        for name, loss in zip(loaded.names, losses, strict=True)
    ]
    if settings.exact_match:
        _add_exact_match(results, settings, loaded, rows, prompts)
    labelled = [row for row in rows.examples if row.desirable is not None]
    if labelled:
        for result, found in zip(results, _of_labels(settings, loaded, labelled), strict=True):
            result |= found
    return results


def _of_labels(
    settings: EvaluateSettings, loaded: "LoadedModel", rows: "Sequence[Example]"
) -> list[dict[str, float | None]]:
    """Returns how likely every model finds answers with labels, and how often it is ahead of the base.

    That it is of a desirable answer where it finds it likelier than the base does, of another where less likely.
    """
    import numpy as np

    from altojax.device.objectives.rows import TextRow, last_answer

    texts = [TextRow(row.tokens, last_answer(row.targets)) for row in rows]
    logps = [-one for one in loaded.adapted.row_losses(texts, rows_at_once=settings.batch_size * loaded.adapted.slots)]
    good = np.array([bool(row.desirable) for row in rows])
    return [
        {
            "logps/chosen": float(own[good].mean()) if good.any() else None,
            "logps/rejected": float(own[~good].mean()) if not good.all() else None,
            "ahead of base": float((np.where(good, 1, -1) * (own - logps[0]) > 0).mean()),
        }
        for own in logps
    ]


def _of_pairs(settings: EvaluateSettings, loaded: "LoadedModel", pairs: "Dataset") -> list[dict[str, Any]]:
    """Returns how often every model finds the chosen answer likelier, and by how much more so than the base.

    Raises:
        UserError: Not all rows are pairs, or exact match is asked of them.
    """
    from jaxlm.data.examples import check_samples

    check_samples(pairs.examples, pairs=True)
    if settings.exact_match or settings.answer_pattern is not None or settings.predictions is not None:
        raise UserError("exact_match: given preference pairs, expected rows with one answer")
    found = loaded.preferences(pairs, settings.batch_size)
    ahead = [logps[:, 0] - logps[:, 1] for logps in found]
    results = []
    for name, logps, own in zip(loaded.names, found, ahead, strict=True):
        chosen, rejected = (float(column.mean()) for column in logps.T)
        results.append({"name": name, "logps/chosen": chosen, "logps/rejected": rejected})
        results[-1]["accuracy"] = float((own > 0).mean())
        results[-1]["ahead of base"] = float((own > ahead[0]).mean())
    return results


def _data_config(settings: EvaluateSettings, source: "ModelSource", model: str) -> "DataConfig":
    from altojax.inference.loaded_model import data_of, from_file

    if settings.data is None and source.data is None:
        raise UserError(f"evaluate {model}: no data given, expected data=FILE (only a run brings its own)")
    given = {key: getattr(settings, key) for key in _DATA_KEYS if getattr(settings, key) is not None}
    data = data_of(source).model_copy(update={**given, "packing": False})
    if settings.data is None:
        return data
    return from_file(data, settings.data, split=settings.split, most=settings.max_samples)


def _rows(settings: EvaluateSettings, data: "DataConfig", loaded: "LoadedModel") -> "Dataset":
    from jaxlm.data.dataset import Dataset

    rows = loaded.rows(data)
    if settings.max_samples is not None and len(rows) > settings.max_samples:
        return Dataset(rows.name, rows.examples[: settings.max_samples])
    return rows


def _prompts(
    settings: EvaluateSettings, data: "DataConfig", loaded: "LoadedModel", rows: "Dataset", day: "date"
) -> "list[Prompt]":
    """Returns what every row asks; refuses, before anything is computed, rows that ask nothing and a wrong pattern."""
    from jaxlm.data.documents import RowError
    from jaxlm.data.encoding import Encoder

    if settings.answer_pattern is not None:
        Pattern(settings.answer_pattern, "answer_pattern")
    encoder = Encoder.of(data, loaded.tokenizer, day)
    prompts = []
    for example in rows.examples:
        try:
            prompts.append(encoder.prompt(example.document))
        except RowError as error:
            raise UserError(f"{example.source}:{example.line}: {error}; exact_match=true has nothing to ask") from None
    return prompts


def _add_exact_match(
    results: list[dict[str, Any]],
    settings: EvaluateSettings,
    loaded: "LoadedModel",
    rows: "Dataset",
    prompts: "Sequence[Prompt]",
) -> None:
    from jaxlm.data.answers import answer_of

    pattern = settings.answer_pattern
    wanted = [answer_of(prompt.answer, pattern) for prompt in prompts]
    ends = loaded.eos_ids(rows.ends)
    most = settings.max_new_tokens or _longest_answer(prompts, rows, loaded)
    sampling = Sampling(max_new_tokens=most, batch_size=settings.batch_size)
    lines = []
    for slot, result in enumerate(results):
        with Progress(Console(stderr=True), race=False) as progress:
            tell = partial(_tell, progress, result["name"], "answers", len(prompts))
            asked = [prompt.tokens for prompt in prompts]
            made = loaded.adapted.complete(asked, slot, sampling, eos_ids=ends, made_some=tell)
        texts = [str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in made]
        hits = [answer_of(text, pattern) == answer for text, answer in zip(texts, wanted, strict=True)]
        result["exact match"] = sum(hits) / len(hits)
        for example, prompt, text, hit in zip(rows.examples, prompts, texts, hits, strict=True):
            line = {"name": result["name"], "line": example.line, "answer": prompt.answer, "made": text, "match": hit}
            lines.append(json.dumps(line, ensure_ascii=False))
    if settings.predictions:
        write_atomic(Path(settings.predictions), "\n".join(lines) + "\n")


def _longest_answer(prompts: "Sequence[Prompt]", rows: "Dataset", loaded: "LoadedModel") -> int:
    """Returns the tokens of the longest reference and its end, but no more than the model has positions for.

    A row that was cut has less than its answer, and an answer as text less than the marks that a template writes in it.
    """
    texts = loaded.tokenizer([prompt.answer for prompt in prompts], add_special_tokens=False)["input_ids"]
    written = [len(row.tokens) - len(asked.tokens) for row, asked in zip(rows.examples, prompts, strict=True)]
    room = loaded.config.max_position - max(len(prompt.tokens) for prompt in prompts)
    return max(1, min(max(*written, *(len(text) + 1 for text in texts)), room))


def _tell(progress: Progress, name: str, unit: str, count: int, done: int) -> None:
    progress.update((), Summary(done=done, total=count, unit=unit, compiles=None, message=name))


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3e}" if value >= 1e6 else f"{value:.4f}"


VERB = Verb(
    name="evaluate",
    help="Loss and exact match of a base and of adapters on it, or of pairs what they prefer, over the same rows.",
    run=run,
    positionals=(Positional("model", "a run's folder, a Hugging Face folder, a .gguf file or a hub id"),),
    settings=EvaluateSettings,
    examples=(
        "altojax evaluate runs/quickstart task=naming",
        "altojax evaluate models/base data=test.jsonl adapter=runs/quickstart/naming/best,other exact_match=true",
        'altojax evaluate runs/quickstart data=test.jsonl exact_match=true answer_pattern="#### (.*)"',
    ),
)
