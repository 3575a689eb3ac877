"""``altojax generate``: text from a base, or from an adapter on it."""

import sys
from typing import TYPE_CHECKING, Annotated, ClassVar

import pydantic

from altojax.inference.settings import UseSettings
from jaxrun.config.cli import Args, Positional, Verb
from jaxrun.config.settings import read_settings
from jaxrun.process.errors import UserError
from jaxrun.terminal.printable import visible

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from altojax.inference.model_source import ModelSource
    from jaxlm.data import Encoder


class GenerateSettings(UseSettings):
    """What ``altojax generate MODEL`` takes.

    Attributes:
        prompt: What to continue or to answer, written as the rows of the run were; ``-`` reads it from standard input.
        system: What the system says before it.
        chat_template: Write the prompt as a user's turn; null does as the run did, and for a base alone where its
            tokenizer has a template.
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
    from altojax.inference.adapted_model import BASE, Sampling, load_adapted
    from altojax.inference.model_source import find_source

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
    encoder = _encoder(source, loaded.tokenizer, settings.chat_template)
    tokens = _prompt_tokens(encoder, source, prompt, settings)
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
        batch_size=settings.samples,
    )
    slot = BASE + len(source.adapters)
    ends = loaded.eos_ids(encoder.turn_ends)
    made = loaded.adapted.complete([tokens] * settings.samples, slot, sampling, eos_ids=ends)
    if source.asking is None and encoder.template and settings.chat_template is None:
        whose = "base" if source.written is None else "adapter"
        _note(f"the {whose}'s chat template writes the prompt; chat_template=false continues it as it stands")
    if source.asking is None and encoder.asks_for_day:
        _note(f"the chat template writes the date, which is {encoder.day}")
    for number, answer in enumerate(made):
        if number:
            print("\n---\n")
        text = str(loaded.tokenizer.decode(answer, skip_special_tokens=True))
        print(visible(text) if sys.stdout.isatty() else text)
    return 0


def _note(text: str) -> None:
    print(f"altojax: {text}", file=sys.stderr)


def _encoder(source: "ModelSource", tokenizer: "PreTrainedTokenizerBase", template: bool | None) -> "Encoder":
    """Returns what writes the rows that were learnt; a base alone uses its chat template where it has one."""
    from jaxlm.data import Encoder

    if source.written is None:
        return Encoder(tokenizer, template=template, day=source.day)
    data = source.written if template is None else source.written.model_copy(update={"chat_template": template})
    return Encoder.of(data, tokenizer, source.day)


def _prompt_tokens(encoder: "Encoder", source: "ModelSource", prompt: str, settings: GenerateSettings) -> "np.ndarray":
    """Writes a prompt as the rows of the run's task were written, or as `settings` says otherwise."""
    from jaxlm.data import Asking
    from jaxlm.data.documents import RowError

    asking = source.asking or Asking()
    if settings.chat_template and asking.format == "text":
        asking = Asking()
    elif not encoder.template and (source.asking is None or asking.format in ("messages", "sharegpt")):
        asking = Asking("text")
    try:
        return encoder.asked(asking.document(prompt, settings.system, template=encoder.template))
    except RowError as error:
        raise UserError(f"prompt: {error}; expected another prompt, or chat_template=false") from None


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
