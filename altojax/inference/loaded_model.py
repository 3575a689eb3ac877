"""A base and adapters on it, ready to use, with the tokenizer and the way in which the adapters' rows were written."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from altojax.adapters.peft_files import read_adapter
from altojax.device.auto_mesh import layout_for_use
from altojax.device.objectives.rows import TextRow
from altojax.inference.adapted_model import AdaptedModel
from altojax.inference.model_source import ModelSource, tell_of_other_forms
from jaxlm.completion import texts
from jaxlm.data.chat.chat_templates import with_template
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import Dataset, dataset_of, load_validation
from jaxlm.data.documents import RowError
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import check_samples, check_vocabulary
from jaxlm.data.prompting import Asking
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.families.config import ModelConfig
from jaxlm.files.tokenizer import end_tokens, load_tokenizer
from jaxlm.files.weights import load_model, read_forms, read_model_config
from jaxlm.models.computation import compute_dtype
from jaxlm.models.sampling import Sampling
from jaxlm.quantised.formats import pack_of
from jaxrun.config.config import load_config
from jaxrun.config.python_values import plain
from jaxrun.process.errors import UserError

_BESIDE_A_BASE = "rows"
"""The name of the data of a model that is no run."""


@dataclass(frozen=True)
class LoadedModel:
    """A base with its adapters, ready to use; `altojax.load` makes one.

    Attributes:
        adapted: The model.
        config: The base's shapes.
        tokenizer: The base's.
        names: Of the slots: ``base``, then each adapter's.
        source: Where they come from, and how the adapters' rows were written.
    """

    adapted: AdaptedModel
    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    source: ModelSource

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        system: str | None = None,
        chat_template: bool | None = None,
        batch_size: int = 16,
    ) -> list[str]:
        """Answers or continues prompts with the last adapter, or with the base where there is none.

        Args:
            prompts: Written as tokens as the rows were that the adapter was trained on. One alone is a list of one.
            max_new_tokens: Longest answer.
            temperature: 0 takes the likeliest token each time.
            top_p: Draw among the likeliest tokens that together reach this probability.
            top_k: Draw among this many likeliest tokens; 0 is all.
            seed: Of the draws.
            system: What the system says before each prompt.
            chat_template: Write a prompt as a user's turn; None does as the run did, and for a base alone where its
                tokenizer has a template.
            batch_size: Prompts at once.

        Returns:
            An answer to each prompt, in their order.

        Raises:
            UserError: A prompt cannot be written, or is too long with what it asks for.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        given |= {"seed": seed, "batch_size": batch_size}
        sampling = load_config(Sampling, given, source="generate")
        encoder = self.encoder(chat_template)
        tokens = [self._prompt_tokens(encoder, prompt, system, chat_template) for prompt in texts(prompts)]
        if not tokens:
            return []
        ends = self.eos_ids(encoder.turn_ends)
        made = self.adapted.complete(tokens, self.adapted.slots - 1, sampling, eos_ids=ends)
        return [str(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in made]

    def loss(self, rows: str | Path | Sequence[Mapping[str, Any]] | None = None, *, batch_size: int = 16) -> float:
        """Returns the mean loss of the last adapter, or of the base where there is none, in nats per target token.

        Args:
            rows: A file or folder of rows, or rows as a file has them, such as ``{"prompt": ..., "completion": ...}``,
                encoded as those were that the adapter was trained on, none of which may be bad; None takes the
                validation rows of its run.
            batch_size: Rows at once.

        Raises:
            UserError: The rows cannot be read or used, or there are none.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"loss: batch_size: given {batch_size!r}, expected a whole number of at least 1")
        data = self.data.model_copy(update={"packing": False, **({} if rows is None else {"bad_lines": "error"})})
        if rows is None:
            if self.source.data is None:
                raise UserError("loss: no rows given, expected some, since only a run brings its own")
            held = self.rows(data)
        elif isinstance(rows, str | Path):
            held = self.rows(from_file(data, str(rows)))
        else:
            found = [plain(row, f"rows.{number}") for number, row in enumerate(rows)]
            held = self.checked(dataset_of(found, data, self.tokenizer, self.source.day))
        check_samples(held.examples, pairs=False)
        if cut := sum(example.truncated for example in held.examples):
            warnings.warn(f"{held.name}: {cut} rows were cut to {data.max_length} tokens", stacklevel=2)
        return self.losses(held, batch_size)[-1]

    def losses(self, rows: Dataset, batch_size: int, *, done: Callable[[int], None] | None = None) -> list[float]:
        """Returns the mean loss of every slot over the same rows.

        Args:
            rows: The rows.
            batch_size: Rows at once.
            done: Told how many rows of all slots have been evaluated so far.
        """
        texts = [TextRow(example.tokens, example.targets) for example in rows.examples]
        return self.adapted.losses(texts, rows_at_once=batch_size * self.adapted.slots, done=done)

    def preferences(self, pairs: Dataset, batch_size: int) -> list[Float[np.ndarray, "pairs 2"]]:
        """Returns log-probabilities of the answers of pairs, the chosen one first, in nats, of every slot.

        Args:
            pairs: Preference pairs.
            batch_size: Rows at once.
        """
        texts = [TextRow(row.tokens, row.targets) for row in pairs.rows]
        found = self.adapted.row_losses(texts, rows_at_once=batch_size * self.adapted.slots)
        return [-losses.reshape(-1, 2) for losses in found]

    @property
    def data(self) -> DataConfig:
        """The default encoding of rows."""
        return data_of(self.source)

    def rows(self, data: DataConfig) -> Dataset:
        """Reads validation rows, and checks that they fit the model.

        Raises:
            UserError: They cannot be read, or do not fit.
        """
        return self.checked(load_validation(data, self.tokenizer, self.source.day))

    def checked(self, rows: Dataset) -> Dataset:
        """Returns rows that fit the model.

        Raises:
            UserError: They do not.
        """
        check_vocabulary(rows.examples, self.config.vocab_size)
        if rows.longest > self.config.max_position:
            limit = self.config.max_position
            raise UserError(f"max_length: a row has {rows.longest} tokens, expected at most the model's {limit}")
        return rows

    def encoder(self, template: bool | None = None) -> Encoder:
        """Returns what writes the rows that were learnt; a base alone uses its chat template where it has one."""
        written, day = self.source.written, self.source.day
        if written is None:
            return Encoder(self.tokenizer, template=template, day=day)
        data = written if template is None else written.model_copy(update={"chat_template": template})
        return Encoder.of(data, self.tokenizer, day)

    def _prompt_tokens(self, encoder: Encoder, prompt: str, system: str | None, template: bool | None) -> np.ndarray:
        """Writes a prompt as the rows of the run's task were written, or as `template` says otherwise.

        Returns:
            int32 [length].

        Raises:
            UserError: It cannot be written so.
        """
        asking = self.source.asking or Asking()
        if template and asking.format == "text":
            asking = Asking()
        elif not encoder.template and (self.source.asking is None or asking.format in ("messages", "sharegpt")):
            asking = Asking("text")
        try:
            return encoder.asked(asking.document(prompt, system, template=encoder.template))
        except RowError as error:
            raise UserError(f"prompt: {error}; expected another prompt, or chat_template=false") from None

    def eos_ids(self, taught: Iterable[int] = ()) -> tuple[int, ...]:
        """Returns the tokens that end a text: those learnt, those that rows teach, the model's and the tokenizer's."""
        return end_tokens([*self.source.ends, *taught], self.config.eos_ids, self.tokenizer)


def load_adapted(source: ModelSource, *, longest: int | None = None, mesh: MeshSpec | None = None) -> LoadedModel:
    """Loads a base and puts its adapters on; adapters are read before the base's weights.

    Args:
        source: Where they are.
        longest: Tokens of the longest row of which a loss is going to be asked; None is as `data_of` says.
        mesh: How devices share the base; None is one device, or all where one does not hold it.

    Raises:
        UserError: Base or adapter cannot be read, or they do not fit; no devices as `mesh` wants them, or too small.
    """
    spec = source.model
    name = spec.model_name_or_path
    config = read_model_config(name, weights=not spec.random_init)
    tokenizer = load_tokenizer(name, trust_remote_code=spec.trust_remote_code)
    if source.written is not None:
        tokenizer = with_template(tokenizer, source.written.chat_template)
    adapters = [read_adapter(folder, config) for folder in source.adapters.values()]
    dtype, pack = compute_dtype(spec), pack_of(spec.quantize)
    forms = read_forms(name, pack, weights=not spec.random_init)
    tell_of_other_forms({name: one for name, (one, _) in zip(source.adapters, adapters, strict=True)}, forms)
    layout = layout_for_use(mesh, config, dtype, forms)
    kinds: dict[str, Any] = {"placement": None if layout is None else layout.placement, "pack": pack}
    _, model = load_model(name, dtype=dtype, random_init=spec.random_init, seed=source.seed, **kinds)
    adapted = AdaptedModel(model, adapters, longest=longest or data_of(source).max_length, layout=layout)
    return LoadedModel(adapted, config, tokenizer, ("base", *source.adapters), source)


def data_of(source: ModelSource) -> DataConfig:
    """The encoding of a source's rows; the defaults, where neither a run nor an adapter says."""
    return source.data or source.written or DataConfig(train=_BESIDE_A_BASE)


def from_file(data: DataConfig, path: str, *, split: str = "test", most: int | None = None) -> DataConfig:
    """Returns a data section whose validation rows are those of another source, which is laid out alike.

    Args:
        data: The section.
        path: A file, a folder or a hub id.
        split: Split of a hub data set.
        most: Use at most this many rows, a fixed random choice.
    """
    given: dict[str, Any] = {"train": path, "validation": path, "validation_fraction": None}
    given |= {"validation_split": split, "validation_samples": most, "revision": None, "hub_config": None}
    return data.model_copy(update=given)
