"""The `data` section of a config: where rows come from and what becomes of them."""

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from jaxlm.data.chat.template_setting import template_file
from jaxrun.config.config import StrictModel

Format = Literal[
    "auto", "text", "prompt-completion", "messages", "alpaca", "sharegpt", "preference", "unpaired-preference"
]
Name = Annotated[str, pydantic.Field(min_length=1)]


class Columns(StrictModel):
    """Names of the data's columns, and of the keys of its turns, where they differ from the names here.

    Attributes:
        text: Plain text.
        prompt: What is asked.
        completion: What is answered.
        messages: A conversation.
        conversations: A conversation of sharegpt.
        instruction: What is asked in alpaca.
        input: More of it.
        output: What is answered in alpaca.
        system: The system prompt.
        history: Earlier questions and answers in alpaca.
        tools: What the assistant may call.
        documents: What a template is given to quote from.
        chat_template_kwargs: More that a template is given.
        chosen: The answer that is preferred, of a pair.
        rejected: The other answer.
        label: Whether an answer is desirable, where each stands alone.
        role: Who speaks, in a turn.
        content: What is said, in a turn.
    """

    text: Name | None = None
    prompt: Name | None = None
    completion: Name | None = None
    messages: Name | None = None
    conversations: Name | None = None
    instruction: Name | None = None
    input: Name | None = None
    output: Name | None = None
    system: Name | None = None
    history: Name | None = None
    tools: Name | None = None
    documents: Name | None = None
    chat_template_kwargs: Name | None = None
    chosen: Name | None = None
    rejected: Name | None = None
    label: Name | None = None
    role: Name | None = None
    content: Name | None = None

    foreign_names: ClassVar[dict[str, str]] = {
        "question": "prompt",
        "query": "input",
        "answer": "completion",
        "response": "completion",
        "field_messages": "messages",
        "field_system": "system",
        "field_tools": "tools",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "kto_tag": "label",
        "field_label": "label",
        "role_tag": "role",
        "content_tag": "content",
        "message_field_role": "role",
        "message_field_content": "content",
        "message_property_mappings": "role",
    }


class DataSource(StrictModel):
    """One of several sources of rows. What it does not say is as the data section says.

    Attributes:
        path: A file, a folder of files, or a hub id.
        weight: Its share of the samples of an epoch, as against the weights of the other sources, which are then 1
            unless they say otherwise. An epoch is as short as it can be with every row in it: rows of a source that is
            too small for its share come several times. Null for all: every row comes once.
        format: What the columns mean.
        columns: What it calls its columns.
        roles: What it calls who speaks.
        split: Split of a hub data set.
        hub_config: Configuration of a hub data set.
        revision: Branch, tag or commit of a hub data set.
    """

    path: Name
    weight: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] | None = None
    format: Format | None = None
    columns: Columns | None = None
    roles: dict[str, str] | None = None
    split: Name | None = None
    hub_config: str | None = None
    revision: str | None = None

    foreign_names: ClassVar[dict[str, str]] = {
        "file": "path",
        "file_name": "path",
        "hf_hub_url": "path",
        "dataset": "path",
        "name": "hub_config",
        "subset": "hub_config",
        "type": "format",
        "probability": "weight",
        "prob": "weight",
        "ratio": "weight",
        "field_messages": "columns",
    }


Sources = Name | Annotated[list[Name | DataSource], pydantic.Field(min_length=1)]


class DataConfig(StrictModel):
    """Training, validation and test rows of one task.

    Attributes:
        train: A .jsonl, .json, .csv, .tsv, .txt (all also .gz) or .parquet file, a folder of them, or a hub id; or a
            list of these, each alone or as `DataSource` with a weight and more.
        validation: The same; null splits validation rows off `train`, the same ones whatever the run's seed.
        validation_fraction: Share of the training rows to split off; a tenth where nothing else is said.
        validation_samples: How many rows to split off, in place of a share; with `validation`, the most to take of it.
        test: Rows that nobody trains on or chooses by, for one look at the end: the same as `train`, without weights.
            Those that are training or validation rows, too, are named and left out. Null is none, unless
            `test_fraction` or `test_samples` splits some off `train`, the same ones whatever the run's seed.
        test_fraction: Share of the training rows to split off for that.
        test_samples: How many rows to split off, in place of a share; with `test`, the most to take of it.
        max_samples: Use at most this many rows of `train` (a fixed random choice, before any split); null is all.
        format: What the columns mean; auto looks at each row.
        columns: What the data calls its columns and the keys of its turns, such as ``{prompt: question}``.
        roles: What the data calls who speaks, such as ``{customer: user, agent: assistant}``.
        max_length: Longest example in tokens.
        truncation: What becomes of longer ones: cut at the end, dropped (and counted), or an error.
        packing: Put several examples into a row; none attends to another.
        train_on: The loss counts completions only, or every token. Rows of plain `text` always count in full.
        chat_template: Write prompt and completion as the tokenizer's chat template does, or one after the other with
            an end-of-text token; null uses the template where the tokenizer has one. A file of a Jinja template or the
            name of one (``alpaca``, ``chatml``, ``gemma``, ``llama3``) replaces the tokenizer's, also in exports.
        separator: What stands between prompt and completion without a template, unless there is white space already.
        bad_lines: Skip rows that cannot be used (each is reported) or stop at the first.
        hub_config: Configuration of a hub data set, for those that have several.
        train_split: Split of a hub data set that `train` means.
        validation_split: Split of a hub data set that `validation` means.
        test_split: Split of a hub data set that `test` means.
        revision: Branch, tag or commit of a hub data set.
    """

    train: Sources
    validation: Sources | None = None
    validation_fraction: float | None = pydantic.Field(default=None, gt=0, lt=1)
    validation_samples: int | None = pydantic.Field(default=None, ge=1)
    test: Sources | None = None
    test_fraction: float | None = pydantic.Field(default=None, gt=0, lt=1)
    test_samples: int | None = pydantic.Field(default=None, ge=1)
    max_samples: int | None = pydantic.Field(default=None, ge=1)
    format: Format = "auto"
    columns: Columns = Columns()
    roles: dict[str, str] = pydantic.Field(default_factory=dict)
    max_length: int = pydantic.Field(default=1024, ge=2)
    truncation: Literal["truncate", "drop", "error"] = "truncate"
    packing: bool = False
    train_on: Literal["completion", "all"] = "completion"
    chat_template: bool | Name | None = None
    separator: str = "\n"
    bad_lines: Literal["skip", "error"] = "skip"
    hub_config: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    revision: str | None = None

    foreign_names: ClassVar[dict[str, str]] = {
        "train_file": "train",
        "train_dataset": "train",
        "dataset": "train",
        "dataset_name": "train",
        "dataset_path": "train",
        "data_path": "train",
        "data_files": "train",
        "train_path": "train",
        "path": "train",
        "datasets": "train",
        "interleave_probs": "train",
        "field_messages": "columns",
        "message_property_mappings": "columns",
        "dataset_text_field": "columns",
        "text_column": "columns",
        "prompt_column": "columns",
        "response_column": "columns",
        "template": "chat_template",
        "chat_template_jinja": "chat_template",
        "chat_template_path": "chat_template",
        "validation_file": "validation",
        "eval_dataset": "validation",
        "eval_file": "validation",
        "val": "validation",
        "test_size": "validation_fraction",
        "val_set_size": "validation_fraction",
        "val_size": "validation_fraction",
        "test_split_size": "validation_fraction",
        "max_eval_samples": "validation_samples",
        "test_datasets": "validation",
        "dataset_test_split": "validation_split",
        "test_file": "test",
        "test_dataset": "test",
        "max_test_samples": "test_samples",
        "max_predict_samples": "test_samples",
        "max_train_samples": "max_samples",
        "max_seq_length": "max_length",
        "max_seq_len": "max_length",
        "model_max_length": "max_length",
        "cutoff_len": "max_length",
        "block_size": "max_length",
        "sequence_len": "max_length",
        "completion_only_loss": "train_on",
        "assistant_only_loss": "train_on",
        "train_on_inputs": "train_on",
        "train_on_prompt": "train_on",
        "sample_packing": "packing",
        "neat_packing": "packing",
        "dataset_config_name": "hub_config",
        "dataset_config": "hub_config",
        "subset": "hub_config",
        "name": "hub_config",
        "split": "train_split",
        "dataset_train_split": "train_split",
    }

    @pydantic.model_validator(mode="after")
    def _one_way_to_hold_rows_out(self) -> Self:
        for key in ("validation", "test"):
            given, share, count = (getattr(self, name) for name in (key, f"{key}_fraction", f"{key}_samples"))
            if given is not None and share is not None:
                raise ValueError(f"{key}_fraction splits rows off train, expected it only where {key} is null")
            if share is not None and count is not None:
                raise ValueError(f"given {key}_fraction and {key}_samples, expected one of them")
        if any(source.weight is not None for source in self.test_sources):
            raise ValueError("a source of test has a weight, which repeats rows, expected none: each is measured once")
        return self

    @property
    def train_sources(self) -> tuple[DataSource, ...]:
        """The sources of training rows, with all that they leave to this section."""
        return self._sources(self.train, self.train_split)

    @property
    def validation_sources(self) -> tuple[DataSource, ...]:
        """The sources of validation rows, likewise; none where they are split off."""
        return () if self.validation is None else self._sources(self.validation, self.validation_split)

    @property
    def test_sources(self) -> tuple[DataSource, ...]:
        """The sources of test rows, likewise; none where there are none, or they are split off."""
        return () if self.test is None else self._sources(self.test, self.test_split)

    @property
    def paths(self) -> dict[str, str]:
        """What is read: paths and hub ids, by the keys that name them."""
        read = {"train": self.train_sources, "validation": self.validation_sources, "test": self.test_sources}
        found: dict[str, str] = {}
        for key, sources in read.items():
            several = len(sources) > 1
            found |= {f"{key}.{i}" if several else key: source.path for i, source in enumerate(sources)}
        template = template_file(self.chat_template)
        return found if template is None else {**found, "chat_template": template}

    @property
    def tests(self) -> bool:
        """Whether rows are held out for a test."""
        return (self.test, self.test_fraction, self.test_samples) != (None, None, None)

    def _sources(self, given: str | list[str | DataSource], split: str) -> tuple[DataSource, ...]:
        listed = given if isinstance(given, list) else [given]
        return tuple(self.source(one, split) for one in listed)

    def source(self, given: str | DataSource, split: str) -> DataSource:
        """Returns a source with all that it leaves to this section, and to `split`."""
        own = DataSource(path=given) if isinstance(given, str) else given
        shared = {
            "format": self.format,
            "columns": self.columns,
            "roles": self.roles,
            "split": split,
            "hub_config": self.hub_config,
            "revision": self.revision,
        }
        missing = {key: value for key, value in shared.items() if getattr(own, key) is None}
        return own.model_copy(update=missing)
