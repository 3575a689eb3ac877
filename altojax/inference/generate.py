"""``altojax generate``: text from a base, or from an adapter on it."""

import sys
from typing import ClassVar

from altojax.inference.settings import UseSettings
from jaxlm.models.sampling import Natural, Positive, Share, Temperature
from jaxrun.config.config import Seed
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.process.errors import UserError
from jaxrun.terminal.printable import visible


class GenerateSettings(UseSettings):
    """Settings of ``altojax generate MODEL``.

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
    max_new_tokens: Positive = 256
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Natural = 0
    seed: Seed = 0
    samples: Positive = 1

    foreign_names: ClassVar[dict[str, str]] = {
        "max_tokens": "max_new_tokens",
        "n": "samples",
        "num_return_sequences": "samples",
        "peft": "adapter",
    }


def run(args: Args) -> int:
    """Runs ``altojax generate MODEL key=value ...``."""
    from altojax.inference.loaded_model import load_adapted
    from altojax.inference.model_source import find_source

    settings = read_settings(GenerateSettings, args.overrides, text=("prompt", "system"))
    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    if not prompt:
        raise UserError('generate: no prompt given, expected prompt="..." (prompt=- reads it from standard input)')
    source = find_source(args["model"], **settings.sought)
    if len(source.adapters) > 1:
        raise UserError(f"adapter: {len(source.adapters)} given, expected one at most")
    model = load_adapted(source, mesh=settings.mesh)
    made = model.generate(
        [prompt] * settings.samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
        system=settings.system,
        chat_template=settings.chat_template,
        batch_size=settings.samples,
    )
    encoder = model.encoder(settings.chat_template)
    if source.asking is None and encoder.template and settings.chat_template is None:
        whose = "base" if source.written is None else "adapter"
        _note(f"the {whose}'s chat template writes the prompt; chat_template=false continues it as it stands")
    if source.asking is None and encoder.asks_for_day:
        _note(f"the chat template writes the date, which is {encoder.day}")
    for number, text in enumerate(made):
        if number:
            print("\n---\n")
        print(visible(text) if sys.stdout.isatty() else text)
    return 0


def _note(text: str) -> None:
    print(f"altojax: {text}", file=sys.stderr)


VERB = Verb(
    name="generate",
    help="Answer or continue a prompt, with a base or with an adapter on it.",
    run=run,
    positionals=(Positional("model", "a run's folder, a Hugging Face folder, a .gguf file or a hub id"),),
    settings=GenerateSettings,
    examples=(
        'altojax generate runs/quickstart task=naming prompt="Name a function that sorts rows."',
        'altojax generate models/base adapter=runs/quickstart/naming/best prompt="Once" temperature=0.8 top_p=0.9',
    ),
)
