"""The rows of a task, read and laid out as its objective wants them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from transformers import PreTrainedTokenizerBase

from altojax.config.objectives import ObjectiveName, is_unpaired, needs_reference
from altojax.config.search.space import merged
from altojax.config.tune_config import TaskConfig, TuneConfig, objective_of
from altojax.device.batch import TokenRow
from altojax.device.objectives.rows import References, answer_rows, lone_answer_rows, text_rows
from altojax.early_exit.rule import SelectBy
from jaxlm.data.answers import OpenQuestions
from jaxlm.data.dataset import Dataset, load_splits
from jaxlm.data.documents import Chat
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example, check_labels, check_samples, check_vocabulary, unread_labels
from jaxlm.data.labels import Questions
from jaxlm.data.prompting import Asking, asking_of
from jaxlm.families.config import ModelConfig
from jaxrun.process.errors import UserError


@dataclass(frozen=True)
class TaskData:
    """The rows of one task.

    Attributes:
        train: Training rows.
        validation: Validation rows.
        test: Rows that are looked at once, at the end, each alone also where others are packed; none where no test is.
        digest: Changes with any token or target of any.
        targets: Targets among training tokens, as a share, and a quarter more: few batches have more of them.
        notes: Lines for the user: sizes, skipped rows, trials that are not as the config might let expect.
        ends: Tokens that end what training rows teach to write, the most frequent first.
        asking: How training rows ask.
        dated: The day that the chat template writes into rows, None where it writes none.
        questions: What trials are asked where a metric decides, None where losses do.
        select_by: What decides.
        references: Log-probabilities of its rows under the reference; None where no trial reads them.
    """

    train: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    test: Sequence[TokenRow]
    digest: str
    targets: float
    notes: tuple[str, ...]
    ends: tuple[int, ...]
    asking: Asking
    dated: date | None
    questions: Questions | OpenQuestions | None = None
    select_by: SelectBy = "loss"
    references: References | None = None

    @property
    def candidates(self) -> Sequence[TokenRow]:
        """The rows of the questions, where labels are compared."""
        return self.questions.candidates if isinstance(self.questions, Questions) else ()

    @property
    def rows(self) -> list[TokenRow]:
        """All its rows."""
        return [*self.train, *self.validation, *self.test, *self.candidates]


def read_rows(
    config: TuneConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, model: ModelConfig, day: date
) -> tuple[TaskData, tuple[Sequence[Example], Sequence[Example]]]:
    """Returns the rows of a task, and the training and validation examples that they are made of.

    Raises:
        UserError: They cannot be read, do not fit the model, or are not what the task's objective trains on.
    """
    objective = objective_of(config, task)
    train, validation, test = load_splits(task.data, tokenizer, day)
    every = [train, validation] if test is None else [train, validation, test]
    space = merged(config.search, task.search)
    alone = objective == "dpo" and is_unpaired(space)
    longest = max(dataset.longest for dataset in every)
    if longest > model.max_position:
        raise UserError(
            f"task '{task.name}': data.max_length {task.data.max_length}: a row has {longest} tokens, "
            f"expected at most the model's {model.max_position}"
        )
    for dataset in every:
        check_vocabulary(dataset.examples, model.vocab_size)
        if alone:
            check_labels(dataset.examples)
        else:
            check_samples(dataset.examples, pairs=objective == "dpo")
    rows, references = _rows([dataset.examples for dataset in every], task, objective, alone=alone)
    tokens = sum(len(row.tokens) for row in rows[0])
    targets = min(1.0, 1.25 * sum(int(row.targets.sum()) for row in rows[0]) / tokens)
    digest = f"{''.join(dataset.digest for dataset in every)}{task.data.packing}{'unpaired' if alone else ''}"
    notes = [line for dataset in every for line in dataset.summary()]
    if alone:
        notes += [line for line in map(_about_signs, ("train", "validation", "test"), every) if line]
    elif objective == "sft":
        notes += unread_labels(train.examples)
    chats = any(isinstance(one.document, Chat) for one in train.examples)
    dated = day if chats and Encoder.of(task.data, tokenizer, day).asks_for_day else None
    if dated is not None:
        notes.append(f"the chat template writes the date, which is {dated} for all of this run")
    asking = asking_of(train.examples)
    held_out = rows[2] if test is not None else ()
    data = TaskData(rows[0], rows[1], held_out, digest, targets, tuple(notes), train.ends, asking, dated)
    if objective == "dpo":
        data = replace(data, select_by="preference")
    if references is not None and needs_reference(space):
        data = replace(data, references=references)
    elif references is not None:
        references.values[:] = 0
    return data, (train.examples, validation.examples)


def _rows(
    splits: Sequence[Sequence[Example]], task: TaskConfig, objective: ObjectiveName, *, alone: bool
) -> tuple[Sequence[Sequence[TokenRow]], References | None]:
    """Returns the rows of each split, and of answers their references; test rows are never packed."""
    if alone:
        return lone_answer_rows(splits, task.data.max_length)
    if objective == "dpo":
        return answer_rows(splits)
    packed = [task.data.packing, task.data.packing, False]
    return [text_rows(one, packs, task.data.max_length) for one, packs in zip(splits, packed, strict=False)], None


def _about_signs(split: str, data: Dataset) -> str | None:
    """Says where a split has answers of one kind only, which tell nothing of the other."""
    kinds = {one.desirable is not False for one in data.examples} | {False for one in data.examples if one.rejected}
    missing = next((name for kind, name in ((True, "desirable"), (False, "undesirable")) if kind not in kinds), None)
    return None if missing is None else f"{split}: no {missing} answer, so accuracy is of one kind alone"
