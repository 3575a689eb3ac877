"""The `data` section of a config: where rows come from and what becomes of them."""

from typing import ClassVar, Literal, Self

import pydantic

from harness.config import StrictModel

Format = Literal["auto", "text", "prompt-completion", "messages", "alpaca", "sharegpt"]


class DataConfig(StrictModel):
    """Training and validation rows of one task.

    Attributes:
        train: A .jsonl, .json (both also .gz), .parquet or .txt file, a folder of them, or a hub id.
        validation: The same; null splits validation rows off `train`, the same ones whatever the run's seed.
        validation_fraction: Share of the training rows to split off; a tenth where nothing else is said.
        validation_samples: How many rows to split off, in place of a share; with `validation`, the most to take of it.
        max_samples: Use at most this many rows of `train` (a fixed random choice, before any split); null is all.
        format: What the columns mean; auto looks at each row.
        max_length: Longest example in tokens.
        truncation: What becomes of longer ones: cut at the end, dropped (and counted), or an error.
        packing: Put several examples into a row; none attends to another.
        train_on: The loss counts completions only, or every token. Rows of plain `text` always count in full.
        chat_template: Write prompt and completion as the tokenizer's chat template does, or one after the other with
            an end-of-text token; null uses the template where the tokenizer has one.
        separator: What stands between prompt and completion without a template, unless there is white space already.
        bad_lines: Skip rows that cannot be used (each is reported) or stop at the first.
        hub_config: Configuration of a hub data set, for those that have several.
        train_split: Split of a hub data set that `train` means.
        validation_split: Split of a hub data set that `validation` means.
        revision: Branch, tag or commit of a hub data set.
    """

    train: str = pydantic.Field(min_length=1)
    validation: str | None = pydantic.Field(default=None, min_length=1)
    validation_fraction: float | None = pydantic.Field(default=None, gt=0, lt=1)
    validation_samples: int | None = pydantic.Field(default=None, ge=1)
    max_samples: int | None = pydantic.Field(default=None, ge=1)
    format: Format = "auto"
    max_length: int = pydantic.Field(default=1024, ge=2)
    truncation: Literal["truncate", "drop", "error"] = "truncate"
    packing: bool = False
    train_on: Literal["completion", "all"] = "completion"
    chat_template: bool | None = None
    separator: str = "\n"
    bad_lines: Literal["skip", "error"] = "skip"
    hub_config: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    revision: str | None = None

    foreign_names: ClassVar[dict[str, str]] = {
        "train_file": "train",
        "train_dataset": "train",
        "dataset": "train",
        "dataset_name": "train",
        "path": "train",
        "validation_file": "validation",
        "eval_dataset": "validation",
        "eval_file": "validation",
        "val": "validation",
        "test_size": "validation_fraction",
        "val_set_size": "validation_fraction",
        "max_eval_samples": "validation_samples",
        "max_train_samples": "max_samples",
        "max_seq_length": "max_length",
        "max_seq_len": "max_length",
        "model_max_length": "max_length",
        "cutoff_len": "max_length",
        "sequence_len": "max_length",
        "completion_only_loss": "train_on",
        "assistant_only_loss": "train_on",
        "train_on_inputs": "train_on",
        "sample_packing": "packing",
        "dataset_config_name": "hub_config",
        "name": "hub_config",
        "split": "train_split",
    }

    @pydantic.model_validator(mode="after")
    def _one_way_to_validate(self) -> Self:
        if self.validation is not None and self.validation_fraction is not None:
            raise ValueError("validation_fraction splits rows off train, expected it only where validation is null")
        if self.validation_fraction is not None and self.validation_samples is not None:
            raise ValueError("given validation_fraction and validation_samples, expected one of them")
        return self
