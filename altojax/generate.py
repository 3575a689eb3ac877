"""``altojax generate``: text from a base, or from an adapter on it."""

import sys
from typing import TYPE_CHECKING, Annotated, ClassVar

import pydantic

from altojax.arguments import UseSettings
from harness.cli import Args, Positional, Verb
from harness.errors import UserError
from harness.settings import read_settings

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


class GenerateSettings(UseSettings):
    """What ``altojax generate MODEL`` takes.

    Attributes:
        prompt: What to continue or to answer; ``-`` reads it from standard input.
        system: A system turn before it, where there is a chat template.
        chat_template: Write the prompt as a user's turn; null does where the tokenizer has a template.
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time.
        top_p: Draw among the likeliest tokens that together reach this probability.
        top_k: Draw among this many likeliest tokens; 0 is all.
        seed: Of the draws.
        samples: How many answers to draw.
    """

    prompt: str | None = None
    system: str | None = None
    chat_template: bool | None = None
    max_new_tokens: Annotated[int, pydantic.Field(ge=1)] = 256
    temperature: Annotated[float, pydantic.Field(ge=0)] = 0.0
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, pydantic.Field(ge=0)] = 0
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    samples: Annotated[int, pydantic.Field(ge=1)] = 1

    foreign_names: ClassVar[dict[str, str]] = {
        "max_tokens": "max_new_tokens",
        "n": "samples",
        "num_return_sequences": "samples",
        "peft": "adapter",
    }


def run(args: Args) -> int:
    """Runs ``altojax generate MODEL key=value ...``."""
    from altojax.adapted import BASE, Sampling, load_adapted
    from altojax.source import find_source

    settings = read_settings(GenerateSettings, args.overrides, text=("prompt", "system"))
    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    if not prompt:
        raise UserError('generate: no prompt given, expected prompt="..." (prompt=- reads it from standard input)')
    source = find_source(
        args["model"], adapters=settings.adapters, task=settings.task, trial=settings.trial, dtype=settings.dtype
    )
    if len(source.adapters) > 1:
        raise UserError(f"adapter: {len(source.adapters)} given, expected one at most")
    loaded = load_adapted(source)
    tokens = _prompt_tokens(loaded.tokenizer, prompt, settings)
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
        batch_size=settings.samples,
    )
    slot = BASE + len(source.adapters)
    made = loaded.adapted.complete([tokens] * settings.samples, slot, sampling, eos_ids=loaded.eos_ids)
    for number, answer in enumerate(made):
        if number:
            print("\n---\n")
        print(loaded.tokenizer.decode(answer, skip_special_tokens=True))
    return 0


def _prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str, settings: GenerateSettings) -> "np.ndarray":
    import numpy as np

    from backbone.data import Chat, Encoder
    from backbone.data.documents import Message, RowError

    template = tokenizer.chat_template is not None if settings.chat_template is None else settings.chat_template
    if template and tokenizer.chat_template is None:
        raise UserError("chat_template: true, but this tokenizer has none, expected false or null")
    if settings.system is not None and not template:
        raise UserError("system: given without a chat template, expected it to be part of the prompt then")
    if template:
        system = [] if settings.system is None else [Message("system", settings.system)]
        turns = (*system, Message("user", prompt), Message("assistant", ""))
        try:
            return Encoder(tokenizer).prompt(Chat(turns)).tokens
        except RowError as error:
            raise UserError(f"prompt: {error}, expected chat_template=false or other turns") from None
    return np.asarray(tokenizer(prompt)["input_ids"], np.int32)


VERB = Verb(
    name="generate",
    help="Answer or continue a prompt, with a base or with an adapter on it.",
    run=run,
    positionals=(Positional("model", "a run's folder, a Hugging Face folder, a .gguf file or a hub id"),),
    overrides=True,
    settings=GenerateSettings,
    examples=(
        'altojax generate runs/quickstart task=naming prompt="Name a function that sorts rows."',
        'altojax generate models/base adapter=runs/quickstart/naming/best prompt="Once" temperature=0.8 top_p=0.9',
    ),
)
