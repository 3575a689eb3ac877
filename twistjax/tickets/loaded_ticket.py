"""A ticket that was exported, or any model folder, ready to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from jaxlm.completion import complete, texts
from jaxlm.data.config import DataConfig
from jaxlm.data.documents import RowError
from jaxlm.data.encoding import Encoder
from jaxlm.data.prompting import Asking
from jaxlm.data.text_rows import read_validation_text
from jaxlm.families.config import ModelConfig
from jaxlm.files.tokenizer import end_tokens, load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.models.sampling import Sampling
from jaxlm.models.transformer import Transformer
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from twistjax.training.scoring import model_loss


@dataclass(frozen=True, eq=False)
class LoadedTicket:
    """A model and its tokenizer; `twistjax.load` makes one.

    Attributes:
        config: Its shapes.
        model: It.
        tokenizer: Its tokenizer.
    """

    config: ModelConfig
    model: Transformer
    tokenizer: PreTrainedTokenizerBase

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        chat_template: bool = False,
        batch_size: int = 16,
    ) -> list[str]:
        """Continues prompts.

        Args:
            prompts: Texts; one alone is a list of one.
            max_new_tokens: Longest continuation.
            temperature: 0 takes the likeliest token each time.
            top_p: Draw among the likeliest tokens that together reach this probability.
            top_k: Draw among this many likeliest tokens; 0 is all.
            seed: Of the draws.
            chat_template: Write a prompt as a user's turn by the tokenizer's template, and answer it.
            batch_size: Prompts at once.

        Returns:
            What follows each prompt, in their order.

        Raises:
            UserError: A prompt is no text, or is too long with what it asks for.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        given |= {"seed": seed, "batch_size": batch_size}
        sampling = load_config(Sampling, given, source="generate")
        encoder = Encoder(self.tokenizer, template=chat_template)
        asking = Asking() if chat_template else Asking("text")
        tokens = []
        for number, prompt in enumerate(texts(prompts)):
            try:
                tokens.append(encoder.asked(asking.document(prompt, template=chat_template)))
            except RowError as error:
                raise UserError(f"prompts.{number}: {error}") from None
        ends = end_tokens(encoder.turn_ends, self.config.eos_ids, self.tokenizer)
        made = complete(self.model, tokens, sampling, eos_ids=ends) if tokens else []
        return [str(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in made]

    def loss(self, data: str | Path, *, max_length: int = 512, batch_size: int = 8) -> float:
        """Returns the mean loss over running text, joined and cut into rows, in nats per token.

        Args:
            data: A file, folder or hub id of text.
            max_length: Tokens of a row.
            batch_size: Rows at once.

        Raises:
            UserError: The text cannot be read, or does not fill a row.
        """
        wanted = load_config(DataConfig, {"train": data, "validation": data, "max_length": max_length}, source="loss")
        if max_length > self.config.max_position:
            raise UserError(f"max_length: given {max_length}, expected at most the model's {self.config.max_position}")
        rows = read_validation_text(wanted, self.tokenizer)
        return model_loss(self.model, rows.tokens, rows.targets, batch_size)


def load_ticket(model: str, *, dtype: str) -> LoadedTicket:
    """Loads a model.

    Args:
        model: A Hugging Face folder, a .gguf file or a hub id.
        dtype: Of weights and computation.

    Raises:
        UserError: It cannot be read.
    """
    config, loaded = load_model(model, dtype=jnp.dtype(dtype))
    return LoadedTicket(config, loaded, load_tokenizer(model))
